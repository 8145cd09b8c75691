"""Drills: real launchers, disturbed on purpose, and what was lost. `python -m drills`, or `make drill`."""
