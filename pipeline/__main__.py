"""`python -m pipeline` is `alasca`."""

from pipeline.cli import run

run()
