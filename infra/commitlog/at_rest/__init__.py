"""The database file while nobody has it open: bringing it to the log's head, and losing nothing of it."""
