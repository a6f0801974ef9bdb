"""What stands behind the operators' commands, `python -m infra COMMAND`."""
