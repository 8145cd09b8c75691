"""What a machine and an installation lack before a run is started on them."""
