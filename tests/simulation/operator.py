"""Somebody with the SQLite shell, who does to a server's file what the runbook lets people do, and more."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import peewee
from playhouse.apsw_ext import APSWDatabase

from core.errors import NotServed
from tests.simulation.model import Model
from tests.simulation.workload import VERSION, SimulatedSchema, State, Write, another_programs, state_of

Say = Callable[[str], None]

_MOST_VISITS = 3  # in which something is put in the place of a file
_MOST_SPOILINGS = 4  # by which it becomes what may be no commit


class Operator:
    def __init__(self, model: Model, rng: random.Random, new_write: Callable[[], Write], counts: Counter[str]) -> None:
        self._model = model
        self._rng = rng
        self._new_write = new_write
        self._counts = counts
        self._copy: tuple[bytes, State] | None = None
        self._visits = 0
        self._spoilings = 0
        self.keeps_off = False  # SQLite itself would make a mixture of what lies there

    def interfere(self, path: Path, say: Say) -> None:
        """While the service runs, or is about to: everything that does not replace the file under it."""
        act = self._rng.choice((self._write, self._write, self._checkpoint, self._write_and_checkpoint, self._vacuum))
        if self._rng.random() < 0.1 and self._may_spoil():
            act = self._rng.choice((self._newer_schema, self._older_schema, self._drop_table))
            self._spoilings += 1
        if path.exists() and not self.keeps_off:
            try:
                act(path)
                say(f"somebody: {act.__name__.strip('_')}")
                self._counts["by others"] += 1
                if self._rng.random() < 0.1:
                    self._make_a_copy(path)
            # Locked, torn by a crash, or with NULL where a mixture of two files has it
            except (apsw.Error, peewee.DatabaseError, TypeError) as error:
                say(f"somebody: {act.__name__.strip('_')}: {error}")

    def visit(self, path: Path, say: Say) -> bool:
        """While the service is down; returns whether anything was done to the file."""
        acts: tuple[Callable[[Path], bool], ...] = (
            self._edit,
            self._remove_wal,
            self._put_copy_in_place,
            self._put_copy_beside_wal,
            self._spoil,
            self._spoil,
        )
        if not path.exists() or self.keeps_off:
            return False
        if self._rng.random() < 0.3:
            self._copy_what_a_stop_has_left(path)
        if self._rng.random() < 0.7:
            return False
        act = self._rng.choice(acts)
        done = act(path)
        if done:
            say(f"somebody, while it is down: {act.__name__.strip('_')}")
            self._counts["visits"] += 1
        return done

    def take_note_of(self, kept: Path) -> None:
        """A file that the service has put aside."""
        self._model.kept(_state_at(kept))

    def take_note_of_changes(self, kept: Path) -> None:
        """The same of single rows."""
        changes = apsw.Changeset.iter(kept.read_bytes())
        numbers = [change.new[1] for change in changes if change.name == "writes" and change.new]
        self._model.kept(State(tuple(number for number in numbers if isinstance(number, int))))

    def forget(self, path: Path) -> None:
        """A power cut is about to take what was synced last, which it would not do in truth."""
        self._model.torn(_state_at(path))

    def _write(self, path: Path) -> None:
        write = self._new_write()
        database = APSWDatabase(str(path), timeout=0)
        database.connect()
        try:
            with database.atomic("IMMEDIATE"):
                if "counter" not in database.get_tables():
                    return
                write(database)
        finally:
            database.close()
        self._model.by_others(write)

    def _checkpoint(self, path: Path) -> None:
        modes = (apsw.SQLITE_CHECKPOINT_PASSIVE, apsw.SQLITE_CHECKPOINT_RESTART, apsw.SQLITE_CHECKPOINT_TRUNCATE)
        with closing(apsw.Connection(str(path))) as connection:
            connection.execute("SELECT * FROM sqlite_schema").fetchall()
            connection.wal_checkpoint(mode=self._rng.choice(modes))

    def _write_and_checkpoint(self, path: Path) -> None:
        self._write(path)
        self._checkpoint(path)

    def _vacuum(self, path: Path) -> None:
        with closing(apsw.Connection(str(path))) as connection:
            connection.execute("VACUUM")
        self._model.mangled()

    def _may_spoil(self) -> bool:
        return self._spoilings < _MOST_SPOILINGS and self._model.chain.is_begun

    def _newer_schema(self, path: Path) -> None:
        self._execute(path, "PRAGMA user_version = 99")

    def _older_schema(self, path: Path) -> None:
        self._execute(path, f"PRAGMA user_version = {VERSION - 1}")
        self._model.mangled()

    def _drop_table(self, path: Path) -> None:
        self._execute(path, "DROP TABLE rows")

    def _execute(self, path: Path, sql: str) -> None:
        with closing(apsw.Connection(str(path))) as connection:
            if connection.execute("SELECT 1 FROM sqlite_schema").fetchall():
                connection.execute(sql)
                self._counts["spoilt"] += 1

    def _spoil(self, path: Path) -> bool:
        if not self._may_spoil():
            return False
        self._spoilings += 1
        try:
            act = self._rng.choice((self._newer_schema, self._older_schema, self._drop_table, None, None, None))
            if act:
                act(path)
                return True
        except (apsw.Error, peewee.DatabaseError):  # torn by a power cut
            return False
        self._counts["spoilt"] += 1
        content = path.read_bytes()
        contents = (
            b"",
            another_programs(),
            content[: self._rng.randrange(len(content) + 1)],
            content[: len(content) // 8192 * 4096],
            b"no database, and less than a page",
        )
        if self._rng.random() < 0.5:
            self._discard_wal(path)
        else:
            self.forget(path)
            self.keeps_off = True
        path.write_bytes(self._rng.choice(contents))
        return True

    def _edit(self, path: Path) -> bool:
        try:
            for _ in range(self._rng.randint(1, 2)):
                self._rng.choice((self._write, self._write_and_checkpoint, self._vacuum))(path)
        except (apsw.Error, peewee.DatabaseError):  # torn by a power cut
            return False
        return True

    def _remove_wal(self, path: Path) -> bool:
        """Of what is left nothing tells that it is half a checkpoint, unless the service has a name for the WAL."""
        self._discard_wal(path)
        last_wal = path.with_name(path.name + ".last-wal")
        if not (last_wal.exists() and last_wal.stat().st_size) and _has_our_schema(path):
            self._model.left_without_wal(_state_at(path))
        return True

    def _discard_wal(self, path: Path) -> None:
        """As some do against locks; what nobody has stored yet is gone then."""
        self.forget(path)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def _put_copy_in_place(self, path: Path) -> bool:
        if not self._copy or self._visits >= _MOST_VISITS:
            return False
        self._visits += 1
        content, state = self._copy
        self._discard_wal(path)
        path.write_bytes(content)
        self._model.put_in_place(state)
        return True

    def _put_copy_beside_wal(self, path: Path) -> bool:
        if not self._copy or self._visits >= _MOST_VISITS:
            return False
        self._visits += 1
        content, state = self._copy
        self.forget(path)
        self.keeps_off = True
        path.write_bytes(content)
        a_second_later = path.stat().st_mtime_ns + 1_000_000_000
        os.utime(path, ns=(a_second_later, a_second_later))
        self._model.put_in_place(state)
        return True

    def _copy_what_a_stop_has_left(self, path: Path) -> None:
        """With cp: byte for byte what the log has had."""
        wal = path.with_name(path.name + "-wal")
        if not (wal.exists() and wal.stat().st_size) and _has_our_schema(path):
            self._copy = path.read_bytes(), _state_at(path)
            self._counts["copies of a stop"] += 1

    def _make_a_copy(self, path: Path) -> None:
        target = path.with_name("copy.db")
        target.unlink(missing_ok=True)
        with closing(apsw.Connection(str(path))) as source, closing(apsw.Connection(str(target))) as copy:
            with copy.backup("main", source, "main") as backup:
                backup.step()
            copy.pragma("journal_mode", "delete")
            version, tables = copy.pragma("user_version"), copy.execute("SELECT name FROM sqlite_schema").fetchall()
        if version == VERSION and ("rows",) in tables:  # otherwise no request can be served
            self._copy = target.read_bytes(), _state_at(target)
        target.unlink()


def _state_at(path: Path) -> State:
    """With whatever is in the WAL beside it, and without touching either."""
    try:
        with _copied(path) as connection:
            try:
                return state_of(lambda sql: connection.execute(sql).fetchall())
            except apsw.SQLError:  # without some of its tables
                return State(tuple(int(number) for (number,) in connection.execute("SELECT number FROM writes")))
    except (apsw.Error, IndexError):
        return State()


def _has_our_schema(path: Path) -> bool:
    try:
        with _copied(path) as connection:
            SimulatedSchema().check(connection)
            return True
    except (apsw.Error, NotServed):
        return False


@contextmanager
def _copied(path: Path) -> Iterator[apsw.Connection]:
    look = path.with_name("look.db")
    try:
        for suffix in ("", "-wal"):
            if (part := path.with_name(path.name + suffix)).exists():
                shutil.copyfile(part, look.with_name(look.name + suffix))
        with closing(apsw.Connection(str(look))) as connection:
            yield connection
    finally:
        for left in path.parent.glob("look.db*"):
            left.unlink()
