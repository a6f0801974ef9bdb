"""A database of which only those pages are here that somebody has asked for."""
