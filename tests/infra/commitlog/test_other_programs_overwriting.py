"""What writes over the file of a running server, or removes what lies beside it, is noticed."""

import logging
import os
import shutil
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from core.errors import DatabaseLocked
from infra.commitlog.raw_file import RawFile, page_size_of
from infra.commitlog.wal import committed_pages
from tests.infra.commitlog.conftest import (
    BIG,
    Instance,
    StartInstance,
    at_once,
    check_file_is_the_log,
    kept,
    old_copy,
    overwrite,
    shell_once,
    stored_in,
    watch,
)


def test_copy_over_the_live_file_is_not_mixed_with_what_is_there(
    server: Instance, path: Path, file_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = old_copy(server, tmp_path)
    overwrite(path, copy)
    with pytest.raises(DatabaseLocked, match="is being written"):
        server.sql("INSERT INTO t VALUES (3)")
    server.clock.seconds += 2
    server.sql("INSERT INTO t VALUES (4)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 4]
    assert "overwritten" in caplog.text
    check_file_is_the_log(server, file_url, tmp_path)


def test_copy_over_the_live_file_counts_after_a_restart(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    copy = old_copy(server, tmp_path)
    before = server.replica.visible.txid
    overwrite(path, copy)
    server.replica.close()
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0]
    assert again.replica.visible.txid == before + 1  # so that what it replaced is in the history


def kept_whole(path: Path) -> list[Path]:
    return [found for found in path.parent.glob("*.diverged-*") if not found.name.endswith("-wal")]


@pytest.fixture
def copy_of_a_stop(server: Instance, path: Path, tmp_path: Path) -> Path:
    """With cp: byte for byte what the log had then. After it the server has two more rows."""
    server.replica.close()
    copy = tmp_path / "copy.db"
    shutil.copyfile(path, copy)
    return copy


@pytest.mark.parametrize("how", ["restart", "watched", "found damaged", "found damaged, restart"])
def test_earlier_state_over_the_live_file_is_the_next_commit_each_time(
    start: StartInstance, copy_of_a_stop: Path, path: Path, file_url: str, tmp_path: Path, how: str
) -> None:
    server = start("server", file_url, lasting=True)
    for turn in (1, 2):
        server.sql("INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (3)")
        before = server.replica.visible.txid
        overwrite(path, copy_of_a_stop)
        if "damaged" in how:
            server.clock.seconds += 100
            assert server.replica.suspect()
        if "restart" in how:
            server.replica.close()
            server = start("server", file_url, lasting=True)
        else:
            with pytest.raises(DatabaseLocked):
                watch(server)
            server.clock.seconds += 3
            watch(server)
        assert server.rows() == stored_in(file_url, tmp_path / f"{turn}.db") == [0]
        assert server.replica.visible.txid == before + 1
    assert kept(path) == []


@pytest.mark.parametrize("moved", range(1, 4))
def test_checkpoint_that_was_killed_is_not_taken_for_a_copy(
    server: Instance, start: StartInstance, path: Path, file_url: str, tmp_path: Path, moved: int
) -> None:
    """It has moved some pages, and the WAL's index does not say so."""
    server.sql(BIG)
    server.replica.close()
    server = start("server", file_url, lasting=True)
    server.sql("UPDATE t SET v = replace(v, '0', '1')")  # pages change, and their number does not
    rows = server.rows()
    wal = path.with_name("app.db-wal")
    pages, page_size = sorted(committed_pages(wal).items())[:moved], page_size_of(path)
    with RawFile(path) as file, wal.open("rb") as frames:
        for number, offset in pages:
            frames.seek(offset)
            file.seek((number - 1) * page_size)
            file.write(frames.read(page_size))
    server.replica.close()
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == rows
    assert kept(path) == ["app.db.dive"]


@pytest.mark.parametrize("content", [b"no database", bytes(300), b"SQLite format 3\0" + bytes(84), b"x" * 4000])
@pytest.mark.parametrize("end", ["stop", "kill", "neither"])
def test_what_is_less_than_a_page_is_kept_byte_for_byte(
    server: Instance, start: StartInstance, path: Path, file_url: str, content: bytes, end: str
) -> None:
    if end == "stop":
        server.replica.close()
    elif end == "kill":
        server.kill()
    path.write_bytes(content)
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))
    if end == "neither":
        server.replica.close()
    again = start("server", file_url, lasting=True)
    assert again.rows() == [0]
    assert [found.read_bytes() for found in kept_whole(path)] == [content]


def test_earlier_state_beside_the_wal_of_a_crash_is_kept(
    start: StartInstance, copy_of_a_stop: Path, path: Path, file_url: str
) -> None:
    server = start("server", file_url, lasting=True)
    server.sql("INSERT INTO t VALUES (2)")
    server.kill()
    overwrite(path, copy_of_a_stop)
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))
    again = start("server", file_url, lasting=True)
    assert again.rows() == [0, 2]
    assert copy_of_a_stop.read_bytes() in [found.read_bytes() for found in kept_whole(path)]


def test_copy_over_the_live_file_is_not_taken_while_a_shell_reads_it(
    server: Instance, path: Path, file_url: str, tmp_path: Path
) -> None:
    """The end of that shell mixes the copy with the WAL."""
    copy = old_copy(server, tmp_path)
    shell = apsw.Connection(str(path))
    shell.execute("SELECT * FROM t").fetchall()
    overwrite(path, copy)
    for _ in range(2):
        with pytest.raises(DatabaseLocked):
            watch(server)
        server.clock.seconds += 3
    shell.close()
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 2, "0" * 60000]
    check_file_is_the_log(server, file_url, tmp_path)


def test_what_a_shell_adds_to_a_copy_over_the_live_file_is_kept_and_not_mixed(
    server: Instance, path: Path, file_url: str, tmp_path: Path
) -> None:
    copy = old_copy(server, tmp_path)
    overwrite(path, copy)
    shell_once(path, "INSERT INTO t VALUES ('on the copy')")()
    with pytest.raises(DatabaseLocked):
        server.sql("INSERT INTO t VALUES (3)")
    server.clock.seconds += 2
    server.sql("INSERT INTO t VALUES (4)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 2, 4, "0" * 60000]
    assert list(path.parent.glob("*.diverged-*"))


def test_copy_over_the_file_while_it_catches_up_is_not_patched(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    copy = old_copy(server, tmp_path)
    start("other", file_url).sql("CREATE TABLE u (v)")
    disconnect = at_once(server.replica.file.disconnect, lambda: overwrite(path, copy), before=False)
    server.replica.file.disconnect = disconnect  # type: ignore[method-assign]
    server.fresh_rows()
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 2, "0" * 60000]
    check_file_is_the_log(server, file_url, tmp_path)


def test_removed_wal_is_noticed(
    server: Instance, path: Path, file_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for suffix in ("-wal", "-shm"):
        path.with_name(f"app.db{suffix}").unlink()
    server.sql("INSERT INTO t VALUES (1)")
    with closing(apsw.Connection(str(path))) as shell:
        assert shell.execute("SELECT v FROM t").fetchall() == [(0,), (1,)]
        shell.execute("INSERT INTO t VALUES (2)")
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]
    check_file_is_the_log(server, file_url, tmp_path)


def test_commit_after_the_index_of_the_wal_was_removed_is_not_lost(
    server: Instance, path: Path, file_url: str, tmp_path: Path
) -> None:
    path.with_name("app.db-shm").unlink()
    shell_once(path, "INSERT INTO t VALUES (1)")()
    server.sql("INSERT INTO t VALUES (2)")
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]
    check_file_is_the_log(server, file_url, tmp_path)


def test_shell_that_waits_at_its_prompt_survives_a_replacement_of_the_file(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """It has the file open and no lock on it: it must find the new content, not another file's WAL."""
    prompt = apsw.Connection(str(path))
    start("other", file_url).sql("CREATE TABLE u (v)", BIG)
    shell_once(path, "INSERT INTO t VALUES (2)")()
    watch(server)
    assert list(path.parent.glob("*.diverged-*"))
    prompt.execute("INSERT INTO t VALUES (3)")
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 3, "0" * 60000]
    prompt.close()
    check_file_is_the_log(server, file_url, tmp_path)
