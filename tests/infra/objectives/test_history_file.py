import json
import logging
import os
import stat
from pathlib import Path
from zlib import crc32

import pytest

from infra.objectives import history_file
from infra.objectives.alerts import Facts
from infra.objectives.history import DAY, History, Slot
from infra.objectives.history_file import HistoryFile
from infra.objectives.judgement import judge
from infra.objectives.status import moment_text
from infra.telemetry.metrics import Totals
from tests.infra.objectives.test_history import NOON

COUNTS = Totals(requests=3, errors=1, durations=(0, 2, *[0] * 11, 1), queries=(7, *[0] * 13), commits=2, locked=1)


def small() -> History:
    history = History(NOON)
    history.see(NOON + 10, 10, COUNTS, {"memory_bytes": 5e7, "unbacked_seconds": 9.5}, starts=1)
    history.see(NOON + 100, 10, Totals(), {"commit_log_txid": 4}, is_ready=False)
    history.noted.firing["StoreAway"] = NOON + 5
    history.noted.degraded = "the store is away"
    return history


def content(history: History) -> object:
    slots = [[list(ring.slots), ring.seconds] for ring in (history.minutes, history.hours)]
    return history.began, history.until, history.noted, slots


@pytest.fixture
def file(tmp_path: Path) -> HistoryFile:
    return HistoryFile(tmp_path / "app.db")


def test_what_is_written_comes_back_and_is_nobody_elses_to_read(file: HistoryFile) -> None:
    assert file.read() is None
    file.write(small())
    found = file.read()
    assert found
    assert content(found) == content(small())
    assert file.path.name == "app.db.history"
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [path.name for path in file.path.parent.iterdir()] == ["app.db.history"]


def test_file_that_is_damaged_anywhere_is_begun_anew_and_said(
    file: HistoryFile, caplog: pytest.LogCaptureFixture
) -> None:
    file.write(small())
    sound = file.path.read_bytes()
    for body in (sound[:-1], sound[: len(sound) // 2], b"", b"\n", spoilt(sound, len(sound) // 2), b"\xff" * 100):
        caplog.clear()
        file.path.write_bytes(body)
        assert file.read() is None
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert "is no history that this release reads, and is begun anew" in record.message
    file.write(small())
    assert file.read()


def spoilt(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def test_no_flipped_byte_and_no_cut_gets_past_the_checksum(file: HistoryFile) -> None:
    file.write(small())
    sound = file.path.read_bytes()
    for at in range(len(sound)):
        for body in (spoilt(sound, at), sound[:at]):
            with pytest.raises(ValueError, match="damaged"):
                history_file._decoded(body)


def test_no_flipped_byte_and_no_cut_does_harm_although_the_checksum_is_right(file: HistoryFile) -> None:
    """As of somebody's hand, or another release's."""
    file.write(small())
    sound = file.path.read_bytes().partition(b"\n")[2]
    refused = 0
    for at in range(len(sound)):
        for body in (spoilt(sound, at), sound[:at], sound[:at] + b"99999999999" + sound[at:]):
            try:
                history = history_file._decoded(f"{crc32(body):08x}\n".encode() + body)
            except ValueError:
                refused += 1
                continue
            judge(Facts(NOON, history, history.noted.gauges))
            moment_text(history.until)
    assert refused > len(sound)


def test_another_releases_file_is_begun_anew(file: HistoryFile, caplog: pytest.LogCaptureFixture) -> None:
    file.write(small())
    _, head, *rest = file.path.read_bytes().splitlines(keepends=True)
    body = json.dumps({**json.loads(head), "version": 2}).encode() + b"\n" + b"".join(rest)
    file.path.write_bytes(f"{crc32(body):08x}\n".encode() + body)
    assert file.read() is None
    assert "begun anew" in caplog.text


def test_nobody_waits_for_what_is_no_file(file: HistoryFile, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(file.path)
    assert file.read() is None
    file.path.unlink()
    file.path.mkdir()
    assert file.read() is None
    with pytest.raises(OSError, match="directory"):
        file.write(small())
    assert caplog.text.count("begun anew") == 2


def test_file_of_a_whole_busy_month_is_small_and_can_be_read(file: HistoryFile) -> None:
    history = History(NOON)
    for ring in (history.minutes, history.hours):
        for number in range(ring.most):
            gauges = {"memory_bytes": 123456789.0, "database_size_bytes": 1e9, "database_wal_size_bytes": 1e8}
            counts = Totals(99999, 99, (7777,) * 14, (7777,) * 14, 99999, 99, 9)
            ring.slots.append(Slot(int(NOON // ring.seconds) + number, 59.987, 0, counts, gauges))
    history.until += 30 * DAY
    file.write(history)
    assert file.path.stat().st_size < history_file._MOST_BYTES / 4
    found = file.read()
    assert found
    assert len(found.minutes.slots) == history.minutes.most
