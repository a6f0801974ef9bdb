#!/bin/sh
# For cron, on a host where the service runs without its own timer (MAINTENANCE_INTERVAL_SECONDS=0):
#   0 * * * * /path/to/scripts/maintain.sh
set -eu
cd "$(dirname "$(readlink -f "$0")")/.."
[ -n "${BACKUP_URL:-}${DATABASE_PATH:-}" ] || export BACKUP_URL="file://$PWD/backups"
exec .venv/bin/python -m infra maintain "$@"
