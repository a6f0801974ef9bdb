#!/bin/sh
# For cron, on a host where the service runs without its own timer (BACKUP_INTERVAL_SECONDS=0):
#   0 * * * * /path/to/scripts/backup.sh
set -eu
cd "$(dirname "$0")/.."
exec .venv/bin/python -m infra backup "$@"
