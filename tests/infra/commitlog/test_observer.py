"""What becomes of commits is told to whoever observes, in the engine's own words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peewee
import pytest

from core.errors import CommitOutcomeUnknown, StoreUnavailable, StoreUnreachable
from infra.commitlog import Unobserved
from infra.commitlog.group import Write
from tests.infra.commitlog.conftest import Instance, Shell, StartInstance, watch

INSERT = "INSERT INTO t VALUES (1)"


class Told(Unobserved):
    """Remembers all of it, but for how long it took."""

    def __init__(self) -> None:
        self.facts: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        if name not in vars(Unobserved):
            return super().__getattribute__(name)
        return lambda *facts: self.facts.append((name, *(fact for fact in facts if not isinstance(fact, float))))

    def count(self, name: str) -> int:
        return sum(fact[0] == name for fact in self.facts)


def told_of(instance: Instance) -> Told:
    instance.log.observer = told = Told()
    return told


def insert(value: int) -> Callable[[peewee.Database], Any]:
    return lambda db: db.execute_sql("INSERT INTO t VALUES (?)", (value,))


def test_commit_is_told_with_its_size_and_how_many_share_it(
    start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    a = start("a", file_url)
    a.sql("CREATE TABLE t (v)")
    told = told_of(a)
    a.replica.write_together([Write(insert(n)) for n in range(3)], 10)
    stored = max((tmp_path / "replica" / "ltx" / "0").iterdir())
    assert told.facts == [
        *[("query_finished", "write")] * 3,
        ("commit_stored", stored.stat().st_size),
        ("commit_shared", a.replica.visible.txid, 3),
    ]


def test_what_commits_nothing_is_no_commit(start: StartInstance, file_url: str) -> None:
    a = start("a", file_url)
    told = told_of(a)
    a.sql("SELECT 1")
    assert told.facts == [("query_finished", "write")]


def test_conflict_and_the_use_case_that_runs_again_are_told(start: StartInstance, file_url: str) -> None:
    a, b = start("a", file_url), start("b", file_url)
    a.sql("CREATE TABLE t (v)")
    told = told_of(b)
    b.sql("CREATE TABLE u (v)")
    assert [told.count(name) for name in ("commit_conflicted", "use_case_repeated", "commit_stored")] == [1, 1, 1]


def test_unknown_outcome_is_told_and_is_no_commit(start: StartInstance, file_url: str) -> None:
    a = start("a", file_url)
    a.sql("CREATE TABLE t (v)")
    told = told_of(a)

    def lose(verb: str, name: str) -> None:
        if verb == "create":
            raise StoreUnavailable("no reply")

    a.store.before = lose
    with pytest.raises(CommitOutcomeUnknown):
        a.sql(INSERT)
    assert [told.count(name) for name in ("outcome_unknown", "commit_stored", "commit_shared")] == [1, 0, 0]


def test_commits_of_a_shell_are_unsaved_until_they_are_in_the_log(server: Instance, shell: Shell) -> None:
    assert server.replica.unsaved_seconds() == 0
    shell("INSERT INTO t VALUES (1)")

    def away(verb: str, name: str) -> None:
        raise StoreUnreachable("away")

    server.store.before = away
    for _ in range(2):
        with pytest.raises(Exception, match="away"):
            watch(server)
        server.clock.seconds += 7
    assert server.replica.unsaved_seconds() >= 14
    server.store.before = lambda verb, name: None
    watch(server)
    assert server.replica.unsaved_seconds() == 0
