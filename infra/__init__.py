"""What touches the machine and the cloud: settings, logs, metrics, the database file, object storage."""
