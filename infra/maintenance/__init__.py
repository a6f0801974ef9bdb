"""What looks after log and backups: one run of it, the routine around it, its report."""
