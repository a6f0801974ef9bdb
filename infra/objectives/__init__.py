"""What the service has promised of itself, and whether it keeps it: measured, kept over restarts, judged."""
