"""SQLite over the commit log, as endpoints see it."""
