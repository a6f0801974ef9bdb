"""Files of this machine: whose they are, who has them, and what survives a power cut."""
