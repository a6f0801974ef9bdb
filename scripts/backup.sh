#!/bin/sh
# One more backup, read back and checked: of the container, or without one of what `make serve` runs. For cron:
#   0 * * * * /path/to/scripts/backup.sh
# The service makes them every hour by itself, and its maintenance deletes what is old.
set -eu
cd "$(dirname "$(readlink -f "$0")")/.."
[ -n "${BACKUP_URL:-}${DATABASE_PATH:-}" ] || export BACKUP_URL="file://$PWD/backups"

infra() {
    if [ "$(docker ps --quiet --filter name='^cloud-native-poc$' 2>/dev/null || true)" ]; then
        docker exec cloud-native-poc python -m infra "$@"
    else
        .venv/bin/python -m infra "$@"
    fi
}

made=$(infra backup "$@")
name=${made%% *}
place=$(infra backups | sed -n '$s/.* backups at //p')
[ ! -f "backups/$name" ] || place=backups
echo "Backup completed: $place/${name:?}"
