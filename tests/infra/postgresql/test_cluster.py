import threading

import psycopg
import pytest

from tests.postgresql import Cluster


def test_a_test_has_an_empty_database_of_its_own(database_url: str) -> None:
    with psycopg.connect(database_url) as db:
        db.execute("CREATE TABLE ours (name text)")
        assert db.execute("SELECT count(*) FROM pg_tables WHERE tableowner = current_user").fetchone() == (1,)


def test_it_does_not_sort_by_bytes_unless_told(database_url: str) -> None:
    """Or a missing COLLATE "C" would never show."""
    with psycopg.connect(database_url) as db:
        assert db.execute("""SELECT 'a' < 'B', 'a' < 'B' COLLATE "C" """).fetchone() == (True, False)


def test_it_starts_again_after_it_was_killed_and_has_what_was_committed(postgresql: Cluster, database_url: str) -> None:
    with psycopg.connect(database_url) as db:
        db.execute("CREATE TABLE kept (name text)")
    postgresql.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database_url)
    postgresql.start()
    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_it_may_keep_silent(postgresql: Cluster, database_url: str) -> None:
    with psycopg.connect(database_url) as db:
        asking = threading.Thread(target=db.execute, args=("SELECT 1",))
        with postgresql.silent():
            asking.start()
            asking.join(0.2)
            assert asking.is_alive()
        asking.join()
