"""What each piece of evidence says of itself: when, of which commit, on what machine, by which command."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from typing import NamedTuple

from core import __version__
from tests.e2e.processes import ROOT

FILES = ("screenshot.svg", "run-log.txt", "dashboard-export.json", "load-test-summary.txt")
_GIB = 1024**3


class Heading(NamedTuple):
    """As it stands in each of the files."""

    date: str
    release: str
    commit: str  # 40 hex digits; with -dirty behind it when the checkout had changes
    machine: str
    command: str

    def lines(self) -> list[str]:
        return [f"{name + ':':<9}{value}" for name, value in self._asdict().items()]


def heading_of(command: str) -> Heading:
    """What is true now, here; neither host names nor paths are in it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    machine = f"{os.cpu_count()} CPUs, {memory:.1f} GiB of memory, {system}; what makes the load runs on it as well"
    moment = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Heading(moment, __version__, commit(), machine, command)


def commit() -> str:
    """That of this checkout, as `make build` has it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def read_heading(text: str) -> dict[str, str]:
    """What a piece of evidence says of itself, whatever its form."""
    fields = "|".join(Heading._fields)
    return dict(re.findall(rf'^[# "]*({fields})"?: +"?(.*?)"?,?$', text, re.MULTILINE))
