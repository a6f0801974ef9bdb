"""Maintenance in a process of its own, so that it holds up no request and leaves its memory behind: a server's way.

The process is told what to do on its standard input, and stops what it does when that is closed: by whoever waits for
it, or by the kernel when that one is dead. What it says, one JSON object a line, are the lines of its log and, at the
end, what became of it. infra/maintenance/__main__.py is the other side.
"""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.errors import MaintenanceError
from infra.commitlog.upkeep import Compactor
from infra.maintenance.report import Report, report_of
from infra.settings import Settings
from infra.telemetry import catalogue
from infra.telemetry.metrics import Metrics

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 2.0  # to clean up in, for a process that is to stop
_DRAIN_SECONDS = 10.0  # more than a server takes
_LOOK_MS = 100  # how often whoever waits for it looks whether it is to stop
_ROOT = Path(__file__).parents[2]  # of the packages, wherever the process is started


class MaintenanceApart:
    """One thread's. Raises MaintenanceError for whatever ends the process without a result, and what `check` raises."""

    def __init__(self, settings: Settings, steps: Compactor, metrics: Metrics) -> None:
        """`steps`: whose knowledge of what is merged is kept here, as each process is a new one. `metrics`: that take
        over what the process has counted.
        """
        self._settings = settings
        self._steps = steps
        self._metrics = metrics

    def run(self, seconds: float = float("inf"), *, check: Callable[[], None] = lambda: None) -> Report:
        """See Maintenance."""
        return report_of(self._done("run", seconds, check))

    def merge(self, check: Callable[[], None] = lambda: None) -> int:
        """See Maintenance."""
        return int(self._done("merge", float("inf"), check))

    def _done(self, work: str, seconds: float, check: Callable[[], None]) -> Any:
        check()
        order = {
            "settings": self._settings.model_dump(mode="json", by_alias=True),
            "work": work,
            "seconds": seconds,
            "merged": self._steps.merged,
        }
        end: dict[str, Any] = {}
        with _started() as process:
            try:
                for said in _said(process, order, check):
                    if line := said.get("line"):
                        _log(line)
                    end = said.get("end", end)
            finally:
                _stop(process)
        if not end:
            raise MaintenanceError(f"its process has ended by itself: {_why(process.returncode)}")
        self._steps.merged.clear()
        self._steps.merged.update((int(level), txid) for level, txid in end["merged"].items())
        for labels, counts, total in end["asked"]:
            self._metrics.histogram(catalogue.STORE_DURATION, *labels).add(counts, total)
        if end.get("cancelled"):
            _wait_for_the_same(check)
            raise MaintenanceError("its process was told to stop, and this one was not")
        if refused := end.get("refused"):
            raise MaintenanceError(refused)
        if failed := end.get("failed"):
            raise RuntimeError(failed)
        return end["result"]


def _started() -> "subprocess.Popen[bytes]":
    """A signal to the whole group, as a terminal sends it, waits until the process knows what to do then."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "infra.maintenance"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _said(
    process: "subprocess.Popen[bytes]", order: dict[str, Any], check: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """What it says, until its end."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()
    output, rest = process.stdout.fileno(), b""
    poll = select.poll()  # `select` takes no file of a number above 1,023
    poll.register(output, select.POLLIN)
    while True:
        check()
        if poll.poll(_LOOK_MS):
            if not (read := os.read(output, 65536)):
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from map(json.loads, lines)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Wait for its end, which it is not given long for if it is not there already."""
    assert process.stdin
    process.stdin.close()
    try:
        process.wait(2 * GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _wait_for_the_same(check: Callable[[], None]) -> None:
    """A signal to the whole group has this process stop as well, when it has answered what it has in hand."""
    until = time.monotonic() + _DRAIN_SECONDS
    while time.monotonic() < until:
        check()
        time.sleep(_LOOK_MS / 1000)


def _log(line: dict[str, Any]) -> None:
    logger = logging.getLogger(line["name"])
    if logger.isEnabledFor(line["levelno"]):
        logger.handle(logging.makeLogRecord(line))


def _why(code: int) -> str:
    if code == -9:
        return "it was killed, perhaps because there was not enough memory"
    return f"by signal {-code}" if code < 0 else f"exit code {code}"
