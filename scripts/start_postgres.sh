#!/bin/sh
# PostgreSQL in a container, in the foreground. The first start makes the cluster, and in it the user and the database
# `items`, with POSTGRES_PASSWORD. One that was cut off there is begun again: the cluster has its name only when it is
# whole.
set -eu

if [ ! -d "$PGDATA" ]; then
    : "${POSTGRES_PASSWORD:?is the password of the user items: set it}"
    half="$PGDATA.unfinished"
    rm -rf "$half"
    initdb --pgdata "$half" --username postgres --auth-local peer --auth-host scram-sha-256 --encoding UTF8 \
        --locale C.UTF-8 --data-checksums >&2
    printf 'local all all trust\nhost all all all scram-sha-256\n' > "$half/pg_hba.conf"
    postgres --single -D "$half" postgres >&2 <<SQL
CREATE ROLE items LOGIN PASSWORD '$(printf %s "$POSTGRES_PASSWORD" | sed "s/'/''/g")'
CREATE DATABASE items OWNER items
SQL
    mv "$half" "$PGDATA"
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp
