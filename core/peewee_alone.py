"""Peewee, imported without the driver of PostgreSQL.

Wherever that is installed Peewee would import it, which takes a cold start a tenth of a second. Who is to serve from
PostgreSQL imports it (infra/postgresql/).
"""

import sys

if "psycopg" not in sys.modules:
    sys.modules["psycopg"] = None  # type: ignore[assignment]
    import peewee as peewee

    del sys.modules["psycopg"]
