"""How fast the parts of a run are on this machine: the order, the loader, a step."""
