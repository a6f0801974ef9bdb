from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import resources
from typing import Any

import pytest
from peewee import PostgresqlDatabase

from core import items, migrations
from core.errors import DatabaseLocked, NotServed, SchemaTooNew, StatementRefused
from core.migrations import postgresql as on_it
from core.migrations import schema_after, scripts
from core.migrations.postgresql import check_whole, for_dsql, is_migrated, migrate, schema_version, statements
from core.schemas import ItemPatch, ItemQuery, NewItem
from tests.core.conftest import connected
from tests.postgresql import Cluster

KNOWN = len(scripts("postgresql"))
ONCE = "CREATE TABLE IF NOT EXISTS runs (n bigint);\nINSERT INTO runs VALUES (1);"


@pytest.fixture
def empty(database_url: str) -> Iterator[PostgresqlDatabase]:
    with closing(connected(database_url)) as database:
        yield database


@pytest.fixture
def db(empty: PostgresqlDatabase) -> PostgresqlDatabase:
    migrate(empty)
    return empty


def with_one_more(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {dialect: [*scripts(dialect), script] for dialect in ("sqlite", "postgresql")}
    monkeypatch.setattr(on_it, "scripts", lambda dialect="sqlite": both[dialect])


def test_each_number_has_a_file_for_each() -> None:
    files = [file.name for file in resources.files(migrations).iterdir() if file.name.endswith(".sql")]
    names = {dialect: sorted(name.removesuffix(f".{dialect}.sql") for name in files if f".{dialect}." in name)
             for dialect in ("sqlite", "postgresql")}  # fmt: skip
    assert names["sqlite"] == names["postgresql"]
    assert len(files) == 2 * len(names["sqlite"])
    assert [name[:5] for name in names["sqlite"]] == [f"{number:04}_" for number in range(1, KNOWN + 1)]


def test_both_make_the_same_tables_and_columns(db: PostgresqlDatabase) -> None:
    """What may be NULL here may be there; SQLite's own keys are not said to be NOT NULL."""
    found = on_it._tables(db)
    del found["schema_migrations"]
    needed = schema_after(KNOWN).columns
    assert {table: set(columns) for table, columns in found.items()} == {
        table: {column.name for column in columns} for table, columns in needed.items()
    }
    for table, columns in needed.items():
        for column in columns:
            assert found[table][column.name] == (column.not_null or column.place_in_key > 0), (table, column)


def test_text_is_compared_by_bytes_and_numbers_are_of_eight(db: PostgresqlDatabase) -> None:
    columns = db.execute_sql(
        "SELECT data_type, collation_name, table_name || '.' || column_name FROM information_schema.columns "
        "WHERE table_schema = 'public' AND table_name <> 'schema_migrations'"
    ).fetchall()
    assert {kind for kind, *_ in columns} == {"text", "bigint", "bytea"}
    assert [name for kind, collation, name in columns if kind == "text" and collation != "C"] == []


def test_migrating_twice_changes_nothing(db: PostgresqlDatabase) -> None:
    before = db.execute_sql("SELECT * FROM schema_migrations").fetchall()
    assert migrate(db) == schema_version(db) == KNOWN
    assert is_migrated(db)
    assert db.execute_sql("SELECT * FROM schema_migrations").fetchall() == before


def test_release_works_on_the_next_releases_schema(db: PostgresqlDatabase) -> None:
    db.execute_sql("ALTER TABLE items ADD COLUMN colour text")
    db.execute_sql("CREATE TABLE shelves (id bigint PRIMARY KEY, item_id bigint REFERENCES items (id))")
    done(db, KNOWN + 1)
    assert is_migrated(db)
    assert migrate(db) == schema_version(db) == KNOWN + 1
    item = items.create_item(db, NewItem(name="Lamp"))
    assert items.replace_item(db, item.id, NewItem(name="Lamp 2")).version == 2
    assert items.patch_item(db, item.id, ItemPatch(quantity=3)).quantity == 3
    assert [found.name for found in items.list_items(db, ItemQuery(q="lamp")).items] == ["Lamp 2"]
    items.delete_item(db, item.id)


def done(db: PostgresqlDatabase, number: int) -> None:
    db.execute_sql("INSERT INTO schema_migrations VALUES (%s, 'x', now(), now())", (number,))


def test_schema_of_a_release_after_the_next_is_refused(db: PostgresqlDatabase) -> None:
    done(db, KNOWN + 2)
    assert not is_migrated(db)
    with pytest.raises(SchemaTooNew, match="serves up to"):
        migrate(db)


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE people (name text)",
        "CREATE TABLE items (id bigint PRIMARY KEY)",
        "CREATE TABLE schema_migrations (version text)",  # as others call theirs
    ],
)
def test_database_of_another_program_is_refused_and_left_as_it_is(empty: PostgresqlDatabase, script: str) -> None:
    empty.execute_sql(script)
    before = on_it._tables(empty)
    for ask in (migrate, is_migrated):
        with pytest.raises(NotServed, match=r"not a database of this service.*of its own"):
            ask(empty)
    assert on_it._tables(empty) == before


@pytest.mark.parametrize(
    ("script", "missing"),
    [
        ("DROP TABLE items CASCADE", "table items: created_at, description, id"),
        ("ALTER TABLE items DROP COLUMN description", "table items: description"),
        ("ALTER TABLE items ALTER COLUMN name DROP NOT NULL", "table items: name"),
        ("DROP TABLE api_keys", "table api_keys: "),
    ],
)
def test_half_a_database_is_refused(db: PostgresqlDatabase, script: str, missing: str) -> None:
    db.execute_sql(script)
    with pytest.raises(NotServed, match=missing):
        migrate(db)


def test_more_than_is_needed_is_served(db: PostgresqlDatabase) -> None:
    for statement in statements(
        "ALTER TABLE items ADD mine text; CREATE TABLE mine (v text); CREATE VIEW v AS SELECT 1"
    ):
        db.execute_sql(statement)
    check_whole(db, migrate(db))


def test_a_schema_beside_another_programs_will_do(empty: PostgresqlDatabase) -> None:
    for statement in ("CREATE TABLE people (name text)", "CREATE SCHEMA ours", "SET search_path = ours"):
        empty.execute_sql(statement)
    assert migrate(empty) == KNOWN


def test_database_of_another_encoding_is_refused(postgresql: Cluster) -> None:
    with postgresql.superuser() as superuser:
        superuser.execute(
            "CREATE DATABASE latin OWNER app ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0"
        )
    try:
        with (
            closing(connected(postgresql.url("latin"))) as database,
            pytest.raises(NotServed, match="as LATIN1: create"),
        ):
            migrate(database)
    finally:
        postgresql.drop_database("latin")


def test_user_who_may_not_create_is_told_so(postgresql: Cluster, empty: PostgresqlDatabase, database_name: str) -> None:
    with postgresql.superuser(database_name) as superuser:
        superuser.execute("REVOKE ALL ON SCHEMA public FROM public; ALTER SCHEMA public OWNER TO postgres")
        superuser.execute("GRANT USAGE ON SCHEMA public TO app")
    with pytest.raises(StatementRefused, match="permission denied for schema public"):
        migrate(empty)


def test_migration_that_was_killed_between_any_two_statements_goes_on(
    empty: PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement is a transaction, so whoever is killed leaves what the last one has done."""
    monkeypatch.setattr(on_it, "LEASE_SECONDS", 0)  # so nobody is waited for who is not there any more
    run, left = on_it._run, 0

    def killed(*arguments: Any) -> Any:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return run(*arguments)

    monkeypatch.setattr(on_it, "_run", killed)
    for statements_done in range(1, 99):
        left = statements_done
        try:
            assert migrate(empty) == KNOWN
            break
        except KeyboardInterrupt:
            if statements_done % 7 == 0:
                empty.execute_sql("DROP SCHEMA public CASCADE")  # and from the beginning, else each has less to do
                empty.execute_sql("CREATE SCHEMA public")
    assert statements_done > KNOWN
    check_whole(empty, KNOWN)
    items.create_item(empty, NewItem(name="Lamp"))


def test_eight_starts_at_once_migrate_once(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_one_more(ONCE, monkeypatch)

    def start(_: int) -> int:
        with closing(connected(database_url)) as database:
            return migrate(database)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(start, range(8))) == {KNOWN + 1}
    with closing(connected(database_url)) as database:
        assert database.execute_sql("SELECT count(*) FROM runs").fetchall() == [(1,)]


def test_two_that_create_the_same_table_at_once_both_go_on(database_url: str) -> None:
    """PostgreSQL says of the second that a name is there already, whatever IF NOT EXISTS says."""
    with (
        closing(connected(database_url)) as first,
        closing(connected(database_url)) as second,
        ThreadPoolExecutor() as threads,
    ):
        first.execute_sql("BEGIN")
        first.execute_sql(on_it._TABLE)
        start = threads.submit(migrate, second)
        while not first.execute_sql("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():
            assert not start.done()
        first.execute_sql("COMMIT")
        assert start.result() == KNOWN


def test_lease_of_somebody_else_is_waited_for_until_it_ends(
    db: PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_one_more(ONCE, monkeypatch)
    monkeypatch.setattr(on_it, "PATIENCE_SECONDS", 0)
    db.execute_sql("INSERT INTO schema_migrations VALUES (%s, 'x', now() + interval '1 hour')", (KNOWN + 1,))
    with pytest.raises(DatabaseLocked, match=f"still at migration {KNOWN + 1}"):
        migrate(db)
    db.execute_sql("UPDATE schema_migrations SET held_until = now() WHERE finished_at IS NULL")
    assert migrate(db) == KNOWN + 1


def test_whoever_has_lost_the_lease_does_nothing_more(db: PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    with_one_more(ONCE, monkeypatch)
    assert on_it._hold(db, KNOWN + 1, "one")
    assert not on_it._hold(db, KNOWN + 1, "two")
    db.execute_sql("UPDATE schema_migrations SET held_until = now() - interval '1 second' WHERE finished_at IS NULL")
    assert on_it._hold(db, KNOWN + 1, "two")
    on_it._run_script(db, KNOWN + 1, ONCE, "one", False)
    assert "runs" not in on_it._tables(db)
    assert schema_version(db) == KNOWN


def test_what_is_done_is_nobodys_to_do_again(db: PostgresqlDatabase) -> None:
    """Whoever has looked before it was done may ask for it afterwards."""
    db.execute_sql("UPDATE schema_migrations SET held_until = now() - interval '1 hour'")
    assert not on_it._hold(db, KNOWN, "late")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("CREATE TABLE mine (v text); CREATE UNIQUE INDEX one ON items (name);", "could not create unique index"),
        ("SELEC;", f'Migration {KNOWN + 1}, SELEC: syntax error at or near "SELEC"'),
        ("SELECT 1 / 0;", "division by zero"),
    ],
)
def test_migration_that_cannot_run_is_named(
    db: PostgresqlDatabase, script: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_it, "_POLL_SECONDS", 0)
    for _ in range(2):
        items.create_item(db, NewItem(name="Lamp"))
    with_one_more(script, monkeypatch)
    with pytest.raises(StatementRefused) as caught:
        migrate(db)
    assert message in str(caught.value)
    assert schema_version(db) == KNOWN


def test_migration_is_split_where_postgresql_ends_a_statement(
    db: PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
    -- a; b
    CREATE TABLE log (v text DEFAULT 'it''s; 100%', "w;x" text); /* c; d */;
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN
        INSERT INTO log VALUES ($$a;b$$); -- it's
        RETURN NEW;
    END
    $body$;
    CREATE TRIGGER t AFTER INSERT ON items FOR EACH ROW EXECUTE FUNCTION note();
    -- it's the end;
    """
    assert len(list(statements(script))) == 3
    with_one_more(script, monkeypatch)
    assert migrate(db) == KNOWN + 1
    items.create_item(db, NewItem(name="Lamp"))
    db.execute_sql("INSERT INTO log DEFAULT VALUES")
    assert db.execute_sql("SELECT v FROM log").fetchall() == [("a;b",), ("it's; 100%",)]


def test_what_dsql_does_not_take_is_left_out_of_what_it_is_told() -> None:
    told = " ".join(for_dsql(statement) for script in scripts("postgresql") for statement in statements(script))
    assert "COLLATE" not in told
    assert told.count("INDEX ASYNC IF NOT EXISTS") == told.count("INDEX") > 1
    assert for_dsql("CREATE UNIQUE INDEX a ON b (c)") == "CREATE UNIQUE INDEX ASYNC a ON b (c)"
    assert for_dsql(for_dsql("CREATE INDEX a ON b (c)")) == "CREATE INDEX ASYNC a ON b (c)"
