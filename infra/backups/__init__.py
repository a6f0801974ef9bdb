"""Plain backups beside the commit log: gzipped SQLite files that any tool can open."""
