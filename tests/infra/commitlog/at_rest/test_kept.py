"""What is kept beside the file, and for how long."""

import logging
import os
import time
from pathlib import Path

import pytest

from infra.__main__ import main
from infra.commitlog.at_rest.kept import KeptFiles
from infra.commitlog.at_rest.local_file import LocalFile
from tests.infra.commitlog.conftest import (
    Instance,
    StartInstance,
    at_once,
    kept,
    keyed_rows,
    shell_once,
    watch,
)


@pytest.mark.parametrize("statement", ["CREATE TABLE mine (v)", "INSERT INTO t VALUES ('mine')"])
def test_what_rows_cannot_tell_is_kept_with_the_whole_file(
    keyed: Instance, path: Path, start: StartInstance, file_url: str, statement: str
) -> None:
    start("other", file_url).sql("INSERT INTO k VALUES (3, 'theirs')")
    shell_once(path, statement)()
    watch(keyed)
    assert keyed_rows(keyed) == [(1, "a"), (2, "b"), (3, "theirs")]
    assert kept(path) == ["app.db.dive"]


@pytest.mark.parametrize(
    ("statement", "kind"), [("UPDATE k SET v = 'mine' WHERE id = 1", "changes"), ("CREATE TABLE mine (v)", "diverged")]
)
def test_what_is_kept_is_on_disk_before_the_file_is_replaced(
    keyed: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    kind: str,
) -> None:
    start("other", file_url).sql("INSERT INTO k VALUES (3, 'theirs')")
    shell_once(path, statement)()
    synced: list[str] = []
    before: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    replace = at_once(LocalFile._write_over, lambda: before.extend(synced), before=True)
    monkeypatch.setattr(LocalFile, "_write_over", replace)
    monkeypatch.setattr(os, "fsync", record)
    watch(keyed)
    [content] = [place for place, name in enumerate(before) if name.startswith(f"{path}.{kind}-")]
    assert str(path.parent) in before[content:]


def test_rows_that_both_have_changed_are_named_and_kept(
    keyed: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = start("other", file_url)
    other.sql("UPDATE k SET v = 'theirs' WHERE id = 1")
    shell_once(path, "UPDATE k SET v = 'mine'")()
    for _ in range(3):
        watch(keyed)
    assert keyed_rows(keyed) == keyed_rows(other) == [(1, "theirs"), (2, "b")]
    assert kept(path) == ["app.db.chan"]
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "do not fit the state that the log has since: k 1." in message
    (file,) = path.parent.glob("app.db.changes-*")
    monkeypatch.setenv("DATABASE_PATH", str(path))
    assert message.count(f"python -m infra changes {file}") == 1
    assert main(["changes", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f'UPDATE "k" SET "v" = \'mine\' WHERE "id" IS {number} AND "v" IS \'{old}\';'
        for number, old in ((1, "a"), (2, "b"))
    ]
    keyed.sql("UPDATE k SET v = 'a' WHERE id = 1")  # whoever decides for what was typed
    keyed.replica.close()
    again = start("server", file_url, lasting=True)
    watch(again)
    assert keyed_rows(again) == [(1, "mine"), (2, "mine")]
    assert kept(path) == []


def test_few_kept_files_stay_and_never_the_newest_goes(
    keyed: Instance, path: Path, start: StartInstance, file_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    day = 24 * 3600
    for number in range(14):
        for name, age in ((f"app.db.diverged-{number:02}", 0), (f"app.db.changes-{number:02}", 31 * day)):
            file = path.with_name(name)
            file.write_bytes(b"")
            os.utime(file, (time.time() - age + number,) * 2)
    path.with_name("app.db.diverged-00-wal").write_bytes(b"")
    keyed.replica.close()
    start("server", file_url, lasting=True)
    left = sorted(found.name for kind in ("diverged", "changes") for found in path.parent.glob(f"app.db.{kind}-*"))
    # Changes that nobody has tried yet are no leftovers, however many they are
    assert left == [f"app.db.changes-{n:02}" for n in range(14)] + [f"app.db.diverged-{n:02}" for n in range(4, 14)]
    warned = [record.getMessage() for record in caplog.records if "is removed" in record.getMessage()]
    assert [f"app.db.diverged-{n:02}," in message for n, message in enumerate(warned)] == [True] * 4
    files = KeptFiles(path)
    files.prune([])
    assert files.all("changes") == [path.with_name("app.db.changes-13")]
    assert len(files.all("diverged")) == 10
