"""Somebody with the SQLite shell, who does to a server's file what the runbook lets people do, and more."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import peewee
from playhouse.apsw_ext import APSWDatabase

from tests.simulation.model import Model
from tests.simulation.workload import State, Write, state_of

Say = Callable[[str], None]

_MOST_VISITS = 3  # in which something is put in the place of a file


class Operator:
    def __init__(self, model: Model, rng: random.Random, new_write: Callable[[], Write], counts: Counter[str]) -> None:
        self._model = model
        self._rng = rng
        self._new_write = new_write
        self._counts = counts
        self._copy: tuple[bytes, State] | None = None
        self._visits = 0
        self.keeps_off = False  # SQLite itself would make a mixture of what lies there

    def interfere(self, path: Path, say: Say) -> None:
        """While the service runs, or is about to: everything that does not replace the file under it."""
        act = self._rng.choice((self._write, self._write, self._checkpoint, self._write_and_checkpoint, self._vacuum))
        if path.exists() and not self.keeps_off:
            try:
                act(path)
                say(f"somebody: {act.__name__.strip('_')}")
                self._counts["foreign"] += 1
                if self._rng.random() < 0.1:
                    self._make_a_copy(path)
            except (apsw.Error, peewee.DatabaseError) as error:  # locked, or torn by a crash
                say(f"somebody: {act.__name__.strip('_')}: {error}")

    def visit(self, path: Path, say: Say) -> bool:
        """While the service is down; returns whether anything was done to the file."""
        acts = (self._edit, self._remove_wal, self._put_copy_in_place, self._put_copy_beside_wal)
        if not path.exists() or self.keeps_off or self._rng.random() < 0.7:
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
        self._model.foreign(write)

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

    def _edit(self, path: Path) -> bool:
        try:
            for _ in range(self._rng.randint(1, 2)):
                self._rng.choice((self._write, self._write_and_checkpoint, self._vacuum))(path)
        except (apsw.Error, peewee.DatabaseError):  # torn by a power cut
            return False
        return True

    def _remove_wal(self, path: Path) -> bool:
        """As some do against locks; what nobody has stored yet is gone then."""
        self.forget(path)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return True

    def _put_copy_in_place(self, path: Path) -> bool:
        if not self._copy or self._visits >= _MOST_VISITS:
            return False
        self._visits += 1
        content, state = self._copy
        self._remove_wal(path)
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
        self._model.put_in_place(state)
        return True

    def _make_a_copy(self, path: Path) -> None:
        target = path.with_name("copy.db")
        target.unlink(missing_ok=True)
        with closing(apsw.Connection(str(path))) as source, closing(apsw.Connection(str(target))) as copy:
            with copy.backup("main", source, "main") as backup:
                backup.step()
            copy.pragma("journal_mode", "delete")
            has_schema = copy.execute("SELECT 1 FROM sqlite_schema").fetchall()
        if has_schema:  # without it no request can be served
            self._copy = target.read_bytes(), _state_at(target)
        target.unlink()


def _state_at(path: Path) -> State:
    """With whatever is in the WAL beside it, and without touching either."""
    look = path.with_name("look.db")
    try:
        for suffix in ("", "-wal"):
            if (part := path.with_name(path.name + suffix)).exists():
                shutil.copyfile(part, look.with_name(look.name + suffix))
        with closing(apsw.Connection(str(look))) as connection:
            return state_of(lambda sql: connection.execute(sql).fetchall())
    except (apsw.Error, IndexError):
        return State()
    finally:
        for left in path.parent.glob("look.db*"):
            left.unlink()
