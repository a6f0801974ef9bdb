"""A database of which only those pages are here that were asked for; the others are in a snapshot of the log."""
