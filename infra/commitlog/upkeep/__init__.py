"""What keeps a log short to read, and tells whether it is sound."""
