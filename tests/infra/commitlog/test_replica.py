"""One SQLite file on the log: what becomes a commit, what never does, who sees what."""

import errno
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import peewee
import pytest

from core.errors import (
    CommitConflict,
    CommitNotStored,
    CommitOutcomeUnknown,
    ItemNotFound,
    LogDamaged,
    LogInUse,
    StoreRefused,
    StoreUnavailable,
    StoreUnreachable,
    TransactionTooLarge,
    TxidNotReached,
)
from infra.clock import Clock
from infra.commitlog import ltx, position_file, vfs
from infra.commitlog.chain import START
from infra.commitlog.log import open_log
from infra.commitlog.open_file import OpenFile
from infra.commitlog.upkeep.verify import verify_log
from infra.storage.object_store import ObjectStore
from tests.infra.commitlog.conftest import (
    Instance,
    ManualClock,
    StartInstance,
    WatchedStore,
    log_over,
    stored_in,
)


@pytest.fixture
def a(start: StartInstance, file_url: str) -> Instance:
    instance = start("a", file_url)
    instance.sql("CREATE TABLE t (v)")
    return instance


@pytest.fixture
def b(start: StartInstance, file_url: str, a: Instance) -> Instance:
    return start("b", file_url)


def head(url: str) -> int:
    return max(item.max_txid for item in open_log(url, Clock()).objects.everything())


# I1, I3: stored before it is seen


def test_no_reader_sees_a_commit_before_it_is_stored(a: Instance) -> None:
    seen = []

    def look(verb: str, name: str) -> None:
        other = apsw.Connection(str(a.path))
        seen.append((verb, a.rows(), other.execute("SELECT count(*) FROM t").fetchall()))
        other.close()

    a.store.before = a.store.after = look
    a.sql("INSERT INTO t VALUES (1)")
    assert seen == [("create", [], [(0,)])] * 2 + [("read_end", [], [(0,)])] * 2
    assert a.rows() == [1]


def test_a_write_is_created_and_then_the_one_before_is_looked_at(a: Instance) -> None:
    a.sql("INSERT INTO t VALUES (1)")
    a.store.requests.clear()
    a.sql("INSERT INTO t VALUES (2)")
    assert [(verb, name[-20:]) for verb, name in a.store.requests] == [
        ("create", "0000000000000004.ltx"),
        ("read_end", "0000000000000003.ltx"),
    ]


def test_a_write_into_a_directory_always_looks_at_the_one_before_first(file_url: str, clock: ManualClock) -> None:
    store = WatchedStore(ObjectStore(file_url, retries=0))
    log, page = log_over(store, clock), [(1, bytes(4096))]
    position = log.append(START, 4096, 1, page, clock.now())
    for _ in range(2):
        store.requests.clear()
        position = log.append(position, 4096, 1, page, clock.now())
        assert [verb for verb, _ in store.requests] == ["read_end", "create", "read_end"]


def test_a_write_after_a_while_looks_at_the_one_before_first_as_well(a: Instance) -> None:
    """It would leave an object where it does not belong, in a log that has gone on or was replaced."""
    a.sql("INSERT INTO t VALUES (1)")
    a.clock.seconds += 5
    a.store.requests.clear()
    a.sql("INSERT INTO t VALUES (2)")
    assert [verb for verb, _ in a.store.requests] == ["read_end", "create", "read_end"]


# I6: what failed never comes back


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (StoreUnreachable("away"), CommitNotStored),
        (StoreRefused("denied"), CommitNotStored),
        (StoreUnavailable("no reply"), CommitOutcomeUnknown),
    ],
)
def test_failed_commit_leaves_nothing(
    a: Instance, file_url: str, tmp_path: Path, failure: Exception, expected: type[Exception]
) -> None:
    def fail(verb: str, name: str) -> None:
        if verb == "create":
            raise failure

    a.store.before = fail
    with pytest.raises(expected):
        a.sql("INSERT INTO t VALUES ('lost')")
    a.store.before = lambda verb, name: None
    assert a.rows() == []
    a.sql("INSERT INTO t VALUES ('kept')")
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == ["kept"]


def test_file_of_a_crash_in_the_middle_of_a_put_has_no_trace_of_it(a: Instance, tmp_path: Path) -> None:
    a.sql("INSERT INTO t VALUES ('stored')")

    def copy_and_fail(verb: str, name: str) -> None:
        for suffix in ("", "-wal"):
            shutil.copy(f"{a.path}{suffix}", tmp_path / f"crashed.db{suffix}")
        raise StoreUnreachable("away")

    a.store.before = copy_and_fail
    with pytest.raises(CommitNotStored):
        a.sql("INSERT INTO t VALUES ('in flight')")
    connection = apsw.Connection(str(tmp_path / "crashed.db"))
    assert connection.execute("SELECT v FROM t").fetchall() == [("stored",)]
    connection.close()


@pytest.mark.parametrize("times", [1, 3])
def test_rollbacks_spills_and_savepoints_ship_what_was_committed(
    a: Instance, file_url: str, tmp_path: Path, times: int
) -> None:
    def fail(db: peewee.Database) -> None:
        work(db)
        raise ZeroDivisionError

    def work(db: peewee.Database) -> None:
        db.execute_sql("PRAGMA cache_size = 3").fetchall()
        fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 300) INSERT INTO t "
        db.execute_sql(fill + "SELECT 'a' || i || hex(zeroblob(500)) FROM n")
        with db.atomic() as savepoint:
            db.execute_sql(fill + "SELECT 'b' || i || hex(zeroblob(500)) FROM n")
            savepoint.rollback()
        db.execute_sql("UPDATE t SET v = v || 'c'")

    for _ in range(times):
        with pytest.raises(ZeroDivisionError):
            a.write(fail)
        a.write(work)
        assert a.rows() == stored_in(file_url, tmp_path / "out.db")
    assert len(a.rows()) == 300 * times


def test_checkpoints_and_restarts_of_the_wal_lose_nothing(a: Instance, file_url: str, tmp_path: Path) -> None:
    for n in range(20):
        a.sql(f"INSERT INTO t VALUES ('{n:03}' || hex(zeroblob(9000)))")
        if n % 5 == 4:
            a.replica.file.writer.execute_sql("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    assert a.rows() == stored_in(file_url, tmp_path / "out.db")


def test_transaction_that_is_too_large_is_refused_and_nothing_is_stored(start: StartInstance, file_url: str) -> None:
    a = start("a", file_url)
    a.replica.committer.max_bytes = 100_000
    a.sql("CREATE TABLE t (v)")
    before = head(file_url)
    with pytest.raises(TransactionTooLarge, match="at most 100000"):
        a.sql("INSERT INTO t VALUES (zeroblob(200000))")
    assert (a.rows(), head(file_url)) == ([], before)
    a.sql("INSERT INTO t VALUES (1)")


def test_write_asks_the_index_of_the_wal_once(a: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = OpenFile._index

    def asking(file: OpenFile) -> object:
        asked.append(head(a.log.url))
        return ask(file)

    monkeypatch.setattr(OpenFile, "_index", asking)
    before = head(a.log.url)
    a.sql("INSERT INTO t VALUES (1)")
    assert asked == [before]


def test_leaving_wal_mode_is_refused(a: Instance) -> None:
    with pytest.raises(peewee.DatabaseError, match="not authorized"):
        a.replica.file.writer.execute_sql("PRAGMA journal_mode = delete").fetchall()
    a.replica.file.writer.connection().set_authorizer(None)
    with pytest.raises(peewee.OperationalError, match="locked"):
        a.replica.file.writer.execute_sql("PRAGMA journal_mode = delete").fetchall()
    a.replica.reader.close()
    a.replica.file._anchor.release()
    with pytest.raises(peewee.DatabaseError, match="must stay in WAL mode"):
        a.replica.file.writer.execute_sql("PRAGMA journal_mode = delete").fetchall()


def test_commit_that_skipped_its_sync_is_not_acknowledged(a: Instance) -> None:
    a.replica.file.writer.connection().set_authorizer(None)
    a.replica.file.writer.execute_sql("PRAGMA synchronous = off").fetchall()
    with pytest.raises(CommitOutcomeUnknown, match="without being stored"):
        a.sql("INSERT INTO t VALUES (1)")


def test_commit_frame_of_a_failed_transaction_is_forgotten(a: Instance) -> None:
    wal = a.replica.file._vfs._wal
    assert wal
    wal._held_back = vfs._CommitMark(32, bytes(24), True)  # as a transaction leaves it that fails before its sync
    a.sql("SELECT 1")
    assert wal._held_back is None


def test_killed_in_the_middle_of_a_put(file_url: str, tmp_path: Path, start: StartInstance) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from tests.infra.commitlog.conftest import Instance, ManualClock
        a = Instance(Path({str(tmp_path / "killed" / "app.db")!r}), {file_url!r}, ManualClock(), True)
        a.replica.open()
        a.sql("CREATE TABLE t (v)")
        a.sql("INSERT INTO t VALUES ('stored')")
        a.store.MOMENT = lambda verb, name: os.kill(os.getpid(), signal.SIGKILL)
        a.sql("INSERT INTO t VALUES ('in flight')")
    """
    for moment, rows in (("before", ["stored"]), ("after", ["in flight", "stored"])):
        for directory in ("killed", "replica"):
            shutil.rmtree(tmp_path / directory, ignore_errors=True)
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code).replace("MOMENT", moment)])
        assert done.returncode == -signal.SIGKILL
        again = start("killed", file_url, lasting=True)
        assert again.rows() == stored_in(file_url, tmp_path / "out.db") == rows
        again.replica.close()


def test_stored_commit_that_the_file_cannot_take_is_fetched_from_the_log(
    start: StartInstance, a: Instance, file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = start("b", file_url, lasting=True)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(position_file.PositionFile, "write", full)
        with pytest.raises(CommitOutcomeUnknown, match=r"The commit is stored, but .* could not take it"):
            b.sql("INSERT INTO t VALUES (1)")
    b.sql("INSERT INTO t VALUES (2)")
    assert b.rows() == stored_in(file_url, tmp_path / "out.db") == [1, 2]


# I2, I5: who has the number


def test_conflicting_commit_is_run_again_on_fresh_state(a: Instance, b: Instance) -> None:
    a.sql("INSERT INTO t VALUES (1)")
    runs = []

    def double(db: peewee.Database) -> None:
        runs.append(1)
        db.execute_sql("INSERT INTO t SELECT max(v) * 2 FROM t")

    b.write(double)
    assert len(runs) == 2
    assert b.rows() == a.fresh_rows() == [1, 2]


def test_writers_in_turn_lose_nothing(a: Instance, b: Instance, start: StartInstance, file_url: str) -> None:
    for n in range(20):
        (a, b)[n % 2].sql(f"INSERT INTO t VALUES ({n})")
    assert a.fresh_rows() == b.fresh_rows() == start("c", file_url).rows() == list(range(20))
    names = [item.min_txid for item in open_log(file_url, Clock()).objects.everything()]
    assert names == list(range(1, 23))


@pytest.mark.parametrize("error", [StoreUnavailable("the reply was lost")])
def test_lost_reply_is_settled_by_reading(a: Instance, url: str, error: Exception) -> None:
    lose_replies = iter([True, False])

    def lose(verb: str, name: str) -> None:
        if verb == "create" and next(lose_replies):
            raise error

    a.store.after = lose
    before = a.replica.visible.txid
    a.sql("INSERT INTO t VALUES (1)")
    assert a.rows() == [1]
    assert a.replica.visible.txid == before + 1


def test_refusal_of_what_was_stored_all_the_same_is_settled_by_reading(a: Instance) -> None:
    """By something that stands before the store."""

    def refuse(verb: str, name: str) -> None:
        if verb == "create":
            raise StoreRefused("400 Bad Request")

    a.store.after = refuse
    a.sql("INSERT INTO t VALUES (1)")
    assert a.rows() == [1]
    a.store.after, a.store.before = a.store.before, refuse
    with pytest.raises(CommitNotStored):
        a.sql("INSERT INTO t VALUES (2)")


def test_sleeper_that_was_not_believed_once_looks_first_the_next_time(a: Instance, b: Instance, file_url: str) -> None:
    for n in range(4):
        b.sql(f"INSERT INTO t VALUES ({n})")
    merged_away(file_url, 5)
    with pytest.raises(CommitOutcomeUnknown, match="asleep"):
        a.sql("INSERT INTO t VALUES ('a')")
    a.sql("INSERT INTO t VALUES ('b')")
    assert a.rows() == b.fresh_rows() == [0, 1, 2, 3, "b"]


def test_echo_of_our_own_attempt_is_no_conflict(a: Instance, file_url: str, tmp_path: Path) -> None:
    """The client library's second try finds the first one's object: 412, and it is ours."""

    def create_first(verb: str, name: str) -> None:
        if verb == "create":
            a.store.before = lambda verb, name: None
            raise StoreUnavailable("sent, but no reply")

    store, create = a.store.store, a.store.store.create

    def create_twice(name: str, body: Any, written_at: Any = None) -> None:
        create(name, body, written_at)
        create(name, body, written_at)

    store.create = create_twice  # type: ignore[method-assign]
    a.sql("INSERT INTO t VALUES (1)")
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == [1]
    assert [verb for verb, _ in a.store.requests][-3:] == ["create", "read_range", "read_end"]


def test_put_that_lands_late_is_found(a: Instance, file_url: str, tmp_path: Path) -> None:
    """The client gave up, the answer was "unknown", and then the object appears."""
    held: list[Any] = []
    store, create = a.store.store, a.store.store.create

    def hold(name: str, body: Any, written_at: Any = None) -> None:
        held.append((name, bytes(body), written_at))
        raise StoreUnavailable("time-out")

    store.create = hold  # type: ignore[method-assign]
    with pytest.raises(CommitOutcomeUnknown):
        a.sql("INSERT INTO t VALUES ('late')")
    assert len({body for _, body, _ in held}) == len(held) > 1  # never the same bytes twice
    store.create = create  # type: ignore[method-assign]
    create(*held[0])
    a.sql("INSERT INTO t VALUES ('next')")
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == ["late", "next"]


def test_conflict_without_end_is_given_up_as_not_stored(a: Instance, b: Instance) -> None:
    def overtake(verb: str, name: str) -> None:
        if verb == "create":
            b.sql("INSERT INTO t VALUES ('b')")
            a.clock.seconds += 1

    a.store.before = overtake
    with pytest.raises(CommitNotStored):
        a.sql("INSERT INTO t VALUES ('a')")
    a.store.before = lambda verb, name: None
    assert set(a.fresh_rows()) == {"b"}


# I4: asleep for long


def merged_away(url: str, high: int) -> None:
    """What maintenance leaves after a day: a snapshot, and level 0 only from there on."""
    log, store = open_log(url, Clock()), ObjectStore(url)
    pages: dict[int, bytes] = {}
    for item in log.objects.everything():
        if item.max_txid <= high:
            with closing(log.objects.read(item)) as last:
                pages.update(last.pages())
    header = replace(last.header, min_txid=1, predecessor=0, node_id=last.position.checksum)
    body, _ = ltx.encode(header, sorted((number, page) for number, page in pages.items() if number <= header.size))
    store.create(f"ltx/9/{1:016x}-{high:016x}.ltx", body)
    for number in range(1, high + 1):
        store.delete(f"ltx/0/{number:016x}-{number:016x}.ltx")


def test_sleeper_does_not_take_a_number_that_is_free_again(
    a: Instance, b: Instance, file_url: str, tmp_path: Path
) -> None:
    for n in range(4):
        b.sql(f"INSERT INTO t VALUES ({n})")
    merged_away(file_url, 5)
    a.clock.seconds += 5
    a.sql("INSERT INTO t VALUES ('a')")
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2, 3, "a"]
    assert not (tmp_path / "replica/ltx/0/0000000000000003-0000000000000003.ltx").exists()


def test_sleeper_whose_clocks_stood_still_is_not_believed(
    a: Instance, b: Instance, file_url: str, tmp_path: Path
) -> None:
    """A paused virtual machine: nothing here says that time has passed, and the number is free."""
    for n in range(4):
        b.sql(f"INSERT INTO t VALUES ({n})")
    merged_away(file_url, 5)
    with pytest.raises(CommitOutcomeUnknown, match="asleep") as caught:
        a.sql("INSERT INTO t VALUES ('a')")
    assert caught.value.txid == 3
    assert a.fresh_rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2, 3]
    [leftover] = verify_log(open_log(file_url, Clock()), tmp_path / "scratch.db").leftovers
    assert "/0000000000000003-" in leftover


def test_conflict_with_a_leftover_after_a_lost_reply_is_an_unknown_outcome(
    a: Instance, b: Instance, file_url: str
) -> None:
    """Ours was stored, merged and deleted while its reply was awaited; what has the number now is somebody else's."""

    def sleep(verb: str, name: str) -> None:
        if verb == "create":
            a.store.after = lambda verb, name: None
            for n in range(4):
                b.sql(f"INSERT INTO t VALUES ({n})")
            merged_away(file_url, 6)
            b.store.store.create(name, ltx.encode(ltx.Header(4096, 2, 3, 3, 1, 1, 1), [(1, bytes(4096))])[0])
            raise StoreUnavailable("the reply was lost")

    a.store.after = sleep
    with pytest.raises(CommitOutcomeUnknown, match="or after this one was merged"):
        a.sql("INSERT INTO t VALUES ('a')")
    assert a.fresh_rows() == [0, 1, 2, 3, "a"]


def test_sleep_in_the_middle_of_a_put_is_noticed(a: Instance, b: Instance, file_url: str, tmp_path: Path) -> None:
    def sleep(verb: str, name: str) -> None:
        if verb == "create":
            a.store.before = lambda verb, name: None
            for n in range(4):
                b.sql(f"INSERT INTO t VALUES ({n})")
            merged_away(file_url, 5)
            a.clock.seconds += 48 * 3600

    a.store.before = sleep
    with pytest.raises(CommitOutcomeUnknown, match="asleep"):
        a.sql("INSERT INTO t VALUES ('a')")
    a.sql("INSERT INTO t VALUES ('again')")
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2, 3, "again"]
    findings = verify_log(open_log(file_url, Clock()), tmp_path / "scratch.db")
    assert findings.problems == []
    assert [name.split()[0].rpartition("/")[2] for name in findings.leftovers] == [
        "0000000000000003-0000000000000003.ltx"
    ]


def test_reader_that_slept_asks_with_a_listing(a: Instance, b: Instance, file_url: str) -> None:
    for n in range(4):
        b.sql(f"INSERT INTO t VALUES ({n})")
    merged_away(file_url, 5)
    assert not a.replica.is_current()
    assert a.fresh_rows() == [0, 1, 2, 3]
    assert a.replica.is_current()


# Reading


def test_current_read_costs_one_request_and_a_fresh_one_none(a: Instance) -> None:
    a.fresh_rows()
    a.store.requests.clear()
    a.fresh_rows()
    assert a.store.requests == [
        ("read", "ltx/0/0000000000000003-0000000000000003.ltx"),
        ("read_end", "ltx/0/0000000000000002-0000000000000002.ltx"),
    ]
    a.store.requests.clear()
    a.replica.refresh(a.clock.now() - 1)
    assert a.store.requests == []


def test_failed_precondition_is_answered_from_fresh_state(a: Instance, b: Instance) -> None:
    def require(db: peewee.Database) -> str:
        if not db.execute_sql("SELECT count(*) FROM t").fetchone()[0]:
            raise ItemNotFound(1)
        return "found"

    with pytest.raises(ItemNotFound):
        b.write(require)
    a.sql("INSERT INTO t VALUES (1)")
    b.clock.seconds += 1
    assert b.write(require) == "found"


def test_caller_is_never_shown_less_than_it_has_seen(a: Instance, b: Instance) -> None:
    a.sql("INSERT INTO t VALUES (1)")
    long_ago = a.clock.now() - 100
    assert not b.replica.refresh(long_ago)
    assert b.rows() == []
    assert b.replica.refresh(long_ago, a.replica.visible.txid)
    assert b.rows() == [1]
    with pytest.raises(TxidNotReached, match="ends at TXID 0000000000000003"):
        b.replica.refresh(long_ago, 99)


def test_far_behind_is_caught_up_by_a_listing(a: Instance, b: Instance) -> None:
    for n in range(600):
        a.sql(f"INSERT INTO t VALUES ({n})")
    assert b.fresh_rows() == list(range(600))


# I8, I9: damage is an error with a name


def test_emptied_log_is_never_current(a: Instance, tmp_path: Path) -> None:
    a.sql("INSERT INTO t VALUES (1)")
    shutil.rmtree(tmp_path / "replica" / "ltx")
    a.clock.seconds += 5
    for use in (a.fresh_rows, lambda: a.sql("INSERT INTO t VALUES (2)")):
        with pytest.raises(LogDamaged, match=r"ends at TXID 0{16}, but .* seen 0{15}3: .*emptied or replaced"):
            use()
    assert not (tmp_path / "replica" / "ltx").exists()


def test_nothing_is_acknowledged_into_a_log_that_was_emptied_this_moment(a: Instance, tmp_path: Path) -> None:
    a.sql("INSERT INTO t VALUES (1)")
    shutil.rmtree(tmp_path / "replica" / "ltx")
    with pytest.raises(CommitOutcomeUnknown, match="is missing"):
        a.sql("INSERT INTO t VALUES (2)")
    with pytest.raises(LogDamaged):
        a.fresh_rows()


@pytest.mark.parametrize(("more", "merged"), [(0, 0), (0, 3), (1, 0), (5, 7)])
def test_log_that_was_begun_anew_is_never_current(
    a: Instance, b: Instance, start: StartInstance, file_url: str, tmp_path: Path, more: int, merged: int
) -> None:
    """Numbers alone do not tell it: it is as long, or longer, and its commits may be merged."""
    a.sql("INSERT INTO t VALUES (1)")
    shutil.rmtree(tmp_path / "replica" / "ltx")
    other = start("other", file_url)
    other.sql("CREATE TABLE t (v)")
    for n in range(1 + more):
        other.sql(f"INSERT INTO t VALUES ('theirs {n}')")
    assert other.replica.visible.txid == 3 + more
    if merged:
        merged_away(file_url, merged)
    before = open_log(file_url, Clock()).objects.everything()
    a.clock.seconds += 5
    for use in (a.fresh_rows, lambda: a.sql("INSERT INTO t VALUES (2)")):
        with pytest.raises(LogDamaged):
            use()
    assert a.rows() == [1]
    assert open_log(file_url, Clock()).objects.everything() == before
    assert start("c", file_url).rows() == other.fresh_rows()


def test_whoever_has_seen_that_its_log_was_replaced_leaves_nothing_in_the_other_one(
    a: Instance, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """Also at the very moment: an object of ours in its way would keep everybody from writing, and from starting."""
    a.sql("INSERT INTO t VALUES (1)")
    shutil.rmtree(tmp_path / "replica" / "ltx")
    other = start("other", file_url)
    other.sql("CREATE TABLE t (v)")
    for use in (a.fresh_rows, lambda: a.sql("INSERT INTO t VALUES (2)")):
        with pytest.raises(LogDamaged, match="replaced"):
            use()
    other.sql("INSERT INTO t VALUES ('theirs 1')", "INSERT INTO t VALUES ('theirs 2')")
    other.sql("INSERT INTO t VALUES ('theirs 3')")
    assert start("c", file_url).rows() == other.fresh_rows()


def test_gap_is_named(a: Instance, file_url: str, tmp_path: Path, start: StartInstance) -> None:
    for n in range(5):
        a.sql(f"INSERT INTO t VALUES ({n})")
    (tmp_path / "replica/ltx/0/0000000000000004-0000000000000004.ltx").unlink()
    with pytest.raises(LogDamaged, match=r"/0000000000000004-0000000000000004\.ltx.*missing"):
        start("c", file_url)


@pytest.mark.parametrize("damage", [lambda body: body[:-9], lambda body: body[:60] + b"\xff" + body[61:]])
def test_damaged_object_is_named(
    a: Instance, b: Instance, file_url: str, tmp_path: Path, start: StartInstance, damage: Any
) -> None:
    a.sql("INSERT INTO t VALUES (1)")
    path = tmp_path / "replica/ltx/0/0000000000000003-0000000000000003.ltx"
    path.write_bytes(damage(path.read_bytes()))
    for use in (b.fresh_rows, lambda: start("c", file_url)):
        with pytest.raises(LogDamaged, match="0000000000000003"):
            use()
    assert b.rows() == []


def test_object_under_the_name_of_another_is_refused(
    a: Instance, b: Instance, file_url: str, tmp_path: Path, start: StartInstance
) -> None:
    a.sql("INSERT INTO t VALUES (1)")
    a.sql("INSERT INTO t VALUES (2)")
    level = tmp_path / "replica/ltx/0"
    shutil.copy(level / "0000000000000004-0000000000000004.ltx", level / "0000000000000003-0000000000000003.ltx")
    for use in (b.fresh_rows, lambda: start("c", file_url)):
        with pytest.raises(LogDamaged, match=r"/0000000000000003-0000000000000003\.ltx holds TXID 4-4"):
            use()
    assert b.rows() == []


def test_commit_of_another_history_is_refused(a: Instance, b: Instance, file_url: str, tmp_path: Path) -> None:
    a.sql("INSERT INTO t VALUES (1)")
    path = tmp_path / "replica/ltx/0/0000000000000003-0000000000000003.ltx"
    path.unlink()
    b.sql("INSERT INTO t VALUES (2)")
    b.sql("INSERT INTO t VALUES (3)")
    with pytest.raises(LogDamaged, match="another history"):
        a.fresh_rows()
    assert a.rows() == [1]


def test_store_that_overwrites_is_refused_before_the_first_write(start: StartInstance, file_url: str) -> None:
    a = start("a", file_url, open=False)
    put = a.store.store.put
    a.store.store.create = lambda name, body, written_at=None: put(name, bytes(body))  # type: ignore[method-assign]
    with pytest.raises(CommitNotStored, match="this store overwrites an object"):
        a.replica.open()
    assert open_log(file_url, Clock()).objects.everything() == []


def test_missing_bucket_is_no_empty_log(start: StartInstance, s3: str) -> None:
    with pytest.raises(StoreRefused, match="there is no such bucket"):
        start("a", "s3://nowhere/log")


def test_dates_never_go_back_for_a_difference_of_seconds(a: Instance, b: Instance) -> None:
    a.clock.skew_ms = 2000
    a.sql("INSERT INTO t VALUES (1)")
    ahead = a.replica.visible.timestamp
    a.clock.skew_ms = 0
    b.sql("INSERT INTO t VALUES (2)")
    assert b.replica.visible.timestamp == ahead


def test_commit_after_one_by_a_fast_clock_is_of_its_own_time(a: Instance, b: Instance) -> None:
    a.clock.skew_ms = 86_400_000
    a.sql("INSERT INTO t VALUES (1)")
    ahead = a.replica.visible.timestamp
    a.clock.skew_ms = 0
    b.sql("INSERT INTO t VALUES (2)")
    assert ahead - b.replica.visible.timestamp > 86_000_000


def test_clock_that_is_wrong_by_a_day_is_reported_and_corrected(a: Instance, caplog: pytest.LogCaptureFixture) -> None:
    a.clock.skew_ms = 86_400_000
    a.sql("INSERT INTO t VALUES (1)")
    ahead = a.replica.visible.timestamp
    a.sql("INSERT INTO t VALUES (2)")
    assert "this machine's clock is 86,400 s ahead of that of" in caplog.text
    a.sql("INSERT INTO t VALUES (3)")
    assert ahead - a.replica.visible.timestamp > 86_000_000


def test_conflict_error_is_not_seen_by_callers() -> None:
    assert not issubclass(CommitConflict, CommitNotStored)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("generations/0123456789abcdef/snapshots/00000000.snapshot.lz4", "a replica of Litestream 0.3"),
        ("0000/0000000000000001-0000000000000001.ltx", "a log as a bucket has it"),
        ("ltx/0/0000000000000001-0000000000000001.ltx", "a log as a directory has it"),
    ],
)
def test_log_is_not_begun_beside_one_under_other_names(url: str, start: StartInstance, name: str, what: str) -> None:
    if name.startswith("0000" if url.startswith("s3:") else "ltx"):
        pytest.skip("that is the log's own name there")
    store = ObjectStore(url)
    store.put(name, b"x")
    with pytest.raises(LogInUse, match=what):
        start("one", url)
    assert [made for made in store.directories() if made != name.partition("/")[0]] == []
    assert store.objects() == []
