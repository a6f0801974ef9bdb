"""Bringing a state back, by the command."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import apsw
import pytest

from core import items
from core.schemas import ItemQuery
from infra.__main__ import main
from infra.backups.backups import open_backups
from infra.clock import Clock
from infra.commitlog import START
from infra.commitlog.commit_clock import CommitClock
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase
from tests.conftest import open_at, write

pytestmark = pytest.mark.usefixtures("served_database")


def names(database: SqliteDatabase) -> list[str]:
    found = asyncio.run(database.read(partial(items.list_items, query=ItemQuery())))
    return [item.name for item in found.items]


def names_in(path: Path) -> list[str]:
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return [str(name) for (name,) in connection.execute("SELECT name FROM items ORDER BY id")]


def written(settings: Settings, *items: str) -> int:
    """The TXID after a server has written these."""
    with closing(open_at(settings.database_path)) as database:
        for name in items:
            write(database, name)
        return database.txid


def served(settings: Settings) -> list[str]:
    """By a server that starts now."""
    with closing(open_at(settings.database_path)) as database:
        return names(database)


def head(settings: Settings) -> int:
    directory = settings.database_path.parent / "replica" / "ltx" / "0"
    return max(int(path.name[:16], 16) for path in directory.iterdir())


def damage(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)


def test_restored_backup_is_the_next_commit_of_a_server_that_runs(settings: Settings) -> None:
    main(["backup"])
    with closing(open_at(settings.database_path, READ_FRESHNESS_SECONDS="0")) as database:
        write(database, "after")
        before = database.txid
        assert main(["restore", "latest"]) == 0
        assert names(database) == []
        assert database.txid == before + 1
        write(database, "goes on")
        assert names(database) == ["goes on"]


def test_restore_leaves_the_file_of_a_stopped_server_to_its_next_start(settings: Settings) -> None:
    main(["backup"])
    written(settings, "after")
    content = settings.database_path.read_bytes()
    assert main(["restore", "latest"]) == 0
    assert settings.database_path.read_bytes() == content
    assert served(settings) == []


def test_restore_needs_nothing_here_but_the_two_urls(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As for the log of a function."""
    main(["backup"])
    written(settings, "after")
    monkeypatch.setenv("REPLICA_URL", settings.replica_url)
    monkeypatch.setenv("BACKUP_URL", settings.backup_url)
    monkeypatch.setenv("DATABASE_PATH", str(tmp_path / "elsewhere" / "app.db"))
    assert main(["restore", "latest"]) == 0
    assert not (tmp_path / "elsewhere").exists()
    assert served(settings) == []


def test_lost_database_and_lost_log_come_back_from_a_backup(
    capsys: pytest.CaptureFixture[str], settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written(settings, "x")
    main(["backup"])
    monkeypatch.setenv("BACKUP_URL", settings.backup_url)
    monkeypatch.setenv("DATABASE_PATH", str(tmp_path / "new" / "app.db"))
    (tmp_path / "new").mkdir()
    capsys.readouterr()
    assert main(["restore", "latest"]) == 0
    assert "undo" not in capsys.readouterr().out, "there is nothing to go back to"
    assert served(Settings.from_environment()) == ["x"]


def test_restore_says_how_to_undo_it_and_that_works(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    main(["backup"])
    written(settings, "after")
    capsys.readouterr()
    main(["restore", "latest", "--json"])
    undo = json.loads(capsys.readouterr().out)["undo"]
    assert served(settings) == []
    assert main(undo.split()) == 0
    assert served(settings) == ["after"]


def test_any_commit_and_any_moment_come_back(settings: Settings) -> None:
    first = written(settings, "first")
    moment = datetime.now(UTC) + timedelta(milliseconds=1)  # which is what commits tell times by
    while datetime.now(UTC) <= moment + timedelta(milliseconds=1):
        pass
    second = written(settings, "second")
    for state, expected in (
        (["--at", moment.isoformat()], ["first"]),
        (["--txid", f"{second:016x}"], ["first", "second"]),
        (["--txid", f"{first:x}"], ["first"]),
    ):
        assert main(["restore", *state]) == 0
        assert served(settings) == expected


def test_restore_of_what_is_there_commits_nothing(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    end = written(settings, "x")
    assert main(["restore", "--txid", f"{end:x}"]) == 0
    assert f"nothing to do: the newest commit, TXID {end:016x}, has the content of " in capsys.readouterr().out
    assert head(settings) == end


def test_state_goes_to_a_file_instead(settings: Settings, tmp_path: Path) -> None:
    first = written(settings, "first")
    main(["backup"])
    second = written(settings, "second")
    for number, (state, expected) in enumerate(
        [(["latest"], ["first"]), (["--txid", f"{first:x}"], ["first"]), ([], ["first", "second"])]
    ):
        path = tmp_path / f"{number}.db"
        assert main(["restore", *state, "-o", str(path)]) == 0
        assert names_in(path) == expected
    assert head(settings) == second


def test_empty_log_restores_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REPLICA_URL", (tmp_path / "empty").as_uri())
    assert main(["restore", "-o", str(tmp_path / "out.db")]) == 1
    assert "is empty" in capsys.readouterr().err
    assert not (tmp_path / "out.db").exists()


def test_file_that_exists_is_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.db").write_bytes(b"mine")
    assert main(["restore", "-o", str(tmp_path / "mine.db")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'mine.db'} exists; name a file that does not\n"
    assert (tmp_path / "mine.db").read_bytes() == b"mine"


def test_file_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["backup"])
    for state in ([], ["latest"]):
        path = tmp_path / "absent" / "out.db"
        assert main(["restore", *state, "-o", str(path)]) in (1, 2)
        assert str(path.parent) in capsys.readouterr().err


def damaged_log(settings: Settings) -> list[str]:
    damage(settings.database_path.parent / "replica/ltx/0/0000000000000002-0000000000000002.ltx")
    return []


def damaged_backup(settings: Settings) -> list[str]:
    (path,) = (settings.database_path.parent / "backups").glob("app-2*.db.gz")
    damage(path)
    return ["latest"]


def backup_of_a_newer_release(settings: Settings) -> list[str]:
    image = settings.database_path.with_name("newer.db")
    with closing(apsw.Connection(str(image))) as connection:
        connection.execute("CREATE TABLE t (v); PRAGMA user_version = 99")
    return [open_backups(settings).create(image, START, "newer").name]


@pytest.mark.parametrize("trouble", [damaged_log, damaged_backup, backup_of_a_newer_release])
def test_what_cannot_be_served_is_not_restored_and_nothing_half_made_stays(
    trouble: Callable[[Settings], list[str]],
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["backup"])
    state = trouble(settings)
    capsys.readouterr()
    (tmp_path / "new").mkdir()
    assert main(["restore", *state, "-o", str(tmp_path / "new" / "out.db")]) == 1
    assert list((tmp_path / "new").iterdir()) == []
    assert main(["restore", *(state or ["--txid", "2"])]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()].count("error") == 2
    assert head(settings) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what: a backup's name"),
        (["latest", "--txid", "1"], "say what: a backup's name"),
        (["", "-o", "state.db"], "say what: a backup's name"),  # a variable that is not set
        (["--at", "", "-o", "state.db"], "say what: a backup's name"),
        (["--at", "2026-01-31T12:00:00Z", "--txid", "1"], "say what: a backup's name"),
        (["--at", ""], "say what: a backup's name"),
        (["--at", "2026-01-31T12:00:00"], "does not say in which time zone"),
        (["--at", "2026-01-31"], "does not say in which time zone"),
        (["--at", "9999-01-31T12:00:00Z"], "is still to come"),
        (["--at", "yesterday"], "is no time"),
        (["--at", "2026-02-31T12:00:00Z"], "is no time"),
    ],
)
def test_restore_that_does_not_say_what_is_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    assert main(["restore", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert head(settings) == 2


@pytest.mark.parametrize("txid", ["nonsense", "0", "-1", ""])
def test_restore_of_what_is_no_txid_is_exit_code_2(txid: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["restore", f"--txid={txid}"])
    assert caught.value.code == 2
    assert f"{txid!r} is no TXID" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--txid", "99"], "ends at TXID 0000000000000002, before 0000000000000099"),
        (["--at", "2020-01-31T12:00:00+01:00"], "It reaches from TXID 0000000000000001"),
        (["app-20200131-1200"], "There is no backup app-20200131-1200"),
    ],
)
def test_what_is_not_kept_is_said_with_what_is(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    assert main(["restore", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert head(settings) == 2


MINUTE, HOUR, YEAR = 60, 3600, 365 * 24 * 3600  # seconds


@pytest.fixture
def written_by_a_clock_that_is(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], datetime]:
    """Ahead, or with a minus behind, so many seconds. Returns a moment after it, and before what is written next."""

    def write_so(seconds: int, item: str) -> datetime:
        with monkeypatch.context() as patch:
            patch.setattr(Clock, "timestamp", lambda _: int((time.time() + seconds) * 1000))
            patch.setattr(CommitClock, "learned", lambda *_: None)  # as of one that has just begun to be wrong
            written(settings, item)
        return a_moment()

    return write_so


def a_moment() -> datetime:
    """One that the time of no file before it, and of none after it, is taken for."""
    moment = datetime.now(UTC) + timedelta(milliseconds=20)
    while datetime.now(UTC) <= moment + timedelta(milliseconds=20):
        pass
    return moment


Skewed = Callable[[int, str], datetime]


@pytest.mark.parametrize("ahead", [10 * MINUTE, 2 * HOUR, YEAR])
def test_moment_after_a_commit_by_a_fast_clock_has_what_was_acknowledged_and_a_warning(
    ahead: int,
    written_by_a_clock_that_is: Skewed,
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whose date later commits may inherit."""
    before = written_by_a_clock_that_is(0, "before")
    after_fast = written_by_a_clock_that_is(ahead, "fast")
    after_right = written_by_a_clock_that_is(0, "right")
    written_by_a_clock_that_is(0, "last")
    expected = {before: ["before"], after_fast: ["before", "fast"], after_right: ["before", "fast", "right"]}
    for number, (moment, names) in enumerate(expected.items()):
        capsys.readouterr()
        assert main(["restore", "--at", moment.isoformat(), "-o", str(tmp_path / f"{number}.db")]) == 0
        assert names_in(tmp_path / f"{number}.db") == names
        warning = "by the clocks of the writers it is TXID 0000000000000003" in capsys.readouterr().err
        assert warning is (moment == after_fast) or moment == after_right
    assert main(["restore", "--json", "--at", after_fast.isoformat()]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["of"].startswith("TXID 0000000000000004")
    assert "cannot be right" in printed["warning"]
    assert printed["other_txid"] == f"{3:016x}"
    assert served(settings) == ["before", "fast"]


def test_commit_by_a_slow_clock_is_where_its_date_says_and_a_warning_names_the_other_one(
    written_by_a_clock_that_is: Skewed, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    shutil.rmtree(settings.database_path.parent)
    written_by_a_clock_that_is(-YEAR, "first")
    moment = written_by_a_clock_that_is(-10 * MINUTE - 1, "before")
    written_by_a_clock_that_is(-10 * MINUTE, "slow")
    capsys.readouterr()
    assert main(["restore", "--at", moment.isoformat(), "-o", str(tmp_path / "now.db")]) == 0
    assert names_in(tmp_path / "now.db") == ["first", "before", "slow"]
    assert "by the store's clock it is TXID 0000000000000004" in capsys.readouterr().err
    assert main(["restore", "--at", a_moment().isoformat(), "-o", str(tmp_path / "last.db")]) == 0
    assert "warning" not in capsys.readouterr().err, "both clocks say the same"
    asked = moment - timedelta(minutes=5)
    assert main(["restore", "--at", asked.isoformat(), "-o", str(tmp_path / "early.db")]) == 0
    assert names_in(tmp_path / "early.db") == ["first", "before", "slow"]
    assert "by the store's clock the log has nothing of before it" in capsys.readouterr().err


@pytest.mark.parametrize("keeps_times", [True, False])
def test_copied_log_comes_back_by_the_dates_of_its_writers(
    keeps_times: bool,
    written_by_a_clock_that_is: Skewed,
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.rmtree(settings.database_path.parent)
    log = settings.database_path.parent / "replica"
    hours_ago = written_by_a_clock_that_is(-2 * HOUR, "first") - timedelta(hours=2)
    written_by_a_clock_that_is(-HOUR, "second")
    copy = tmp_path / "copy"
    shutil.copytree(log, copy, copy_function=shutil.copy2 if keeps_times else shutil.copy)
    for path in copy.rglob("*.ltx"):
        os.chmod(path, 0o600)
    monkeypatch.setenv("REPLICA_URL", copy.as_uri())
    capsys.readouterr()
    for moment, names in ((hours_ago, ["first"]), (hours_ago + timedelta(hours=1.5), ["first", "second"])):
        path = tmp_path / f"{len(names)}.db"
        assert main(["restore", "--at", moment.isoformat(), "-o", str(path)]) == 0
        assert names_in(path) == names
        assert "were copied or touched since" in capsys.readouterr().err


def test_commit_of_a_process_whose_clock_is_ahead_hides_nothing(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real one, in a directory whose times are the kernel's."""
    spec = find_spec("libfaketime")
    assert spec
    assert spec.origin
    library = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    ahead = {"LD_PRELOAD": str(library), "FAKETIME": "+2h", "NO_FAKE_STAT": "1", "DONT_FAKE_MONOTONIC": "1"}
    written(settings, "first")
    main(["backup"])
    written(settings, "second")
    restore = [sys.executable, "-m", "infra", "restore", "latest"]
    subprocess.run(restore, check=True, cwd=Path(__file__).parents[3], env=os.environ | ahead)
    moment = a_moment()
    written(settings, "third")
    capsys.readouterr()
    assert main(["restore", "--at", moment.isoformat(), "-o", str(tmp_path / "state.db")]) == 0
    assert names_in(tmp_path / "state.db") == ["first"]
    assert "warning: TXID 0000000000000005 is dated" in capsys.readouterr().err
