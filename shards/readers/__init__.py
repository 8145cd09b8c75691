"""One file per raw layout; each turns a raw dataset into a list of records."""
