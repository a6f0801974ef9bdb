"""Every commit of the SQLite database as one immutable object, ordered by the object store."""
