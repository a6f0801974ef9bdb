"""The runbook's commands as they stand there, typed into a shell beside the service in a container."""

import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.checkout import CONTAINER, Checkout
from tests.e2e.processes import ROOT

pytestmark = pytest.mark.e2e

# What would never end, asks the world outside, or has a test or a CI step of its own
_INSTEAD = {
    r"docker logs -f cloud-native-poc": "{ timeout 2 docker logs -f cloud-native-poc || test $? = 124; }",
    r"docker exec -it": "docker exec -i",
    r"docker pull \S+|\.venv/bin/pip list --outdated": "true",
    r"git clone <repository> .*": "",
    r"\bmake test\b": "true",
    # a release that somebody has on this machine keeps its tag
    r"v1\.[12]\.0": "e2e",
}
_NOTHING_FOUND = "exit code 1 of: grep"
_AWS = "On AWS Lambda"


class Block(NamedTuple):
    chapter: str
    name: str  # its heading, with a number from the second of one heading on
    script: str


def _blocks() -> Iterator[Block]:
    """Every shell block of RUNBOOK.md."""
    seen: dict[str, int] = {}
    chapter, heading, fence, lines = "", "", "", list[str]()
    for line in (ROOT / "RUNBOOK.md").read_text().splitlines():
        if line.startswith("```"):
            if fence == "```sh":
                seen[heading] = seen.get(heading, 0) + 1
                name = heading + (f" ({seen[heading]})" if seen[heading] > 1 else "")
                yield Block(chapter, name, "\n".join(lines))
            fence, lines = ("" if fence else line), []
        elif fence:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
            chapter = heading if line.startswith("## ") else chapter


BLOCKS = {block.name: block for block in _blocks()}
# `Tests` is what CI does, step by step; the chapter on AWS needs an account
RUN = [name for name, block in BLOCKS.items() if block.chapter != _AWS and name != "Tests"]

GOES_BACK = {"Restore", "Restore (2)", "Complete data loss"}


class Operator:
    """Whoever has the runbook open; items named `kept` must outlast whatever is typed."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        checkout.begin_anew()
        checkout.add("kept")
        checkout.sh("docker tag cloud-native-poc:latest cloud-native-poc:e2e")
        made = checkout.sh(f"docker exec {CONTAINER} python -m infra backup --json")
        self.moment = datetime.now(UTC)
        self.backup = json.loads(made)["name"]

    def types(self, script: str) -> str:
        """Runs it as written, but for dates, names, the port and `_INSTEAD`. What it printed, errors included."""
        for pattern, text in _INSTEAD.items():
            script = re.sub(pattern, text, script)
        for pattern, text in {
            r"\b8000\b": str(self.checkout.port),
            r"2026-01-31T1\d:\d\d:00Z": self.moment.isoformat().replace("+00:00", "Z"),
            r"app-20260131-1200\b": self.backup,
            r"\bNAME\b": self.backup,
            r"-txid \d+[a-f0-9]+": "",
            r"\bsudo ": "" if os.getuid() == 0 else "sudo ",
        }.items():
            script = re.sub(pattern, text, script)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        result = self.checkout.run(script, PATH=path)
        failed = [line for line in result.stderr.splitlines() if re.match("exit code|bash: ", line)]
        assert [line for line in failed if not line.startswith(_NOTHING_FOUND)] == [], (
            script + result.stdout + result.stderr
        )
        return result.stdout + result.stderr


@pytest.fixture(scope="module")
def operator(checkout: Checkout) -> Iterator[Operator]:
    yield Operator(checkout)
    checkout.sh("docker rmi cloud-native-poc:e2e")


@pytest.fixture(autouse=True)
def healthy(operator: Operator) -> None:
    if operator.checkout.inspect()["State"]["Health"]["Status"] != "healthy":
        operator.checkout.sh("docker compose up -d --wait")


@pytest.mark.parametrize("name", RUN)
def test_block_works_as_written_and_loses_nothing(operator: Operator, name: str) -> None:
    (operator.checkout.data / "app.db.diverged-1").touch()  # `Disk full` removes what is kept
    operator.checkout.add("regretted")
    operator.types(BLOCKS[name].script)
    operator.checkout.sh("docker compose up -d --wait")
    assert operator.checkout.names()[0] == "kept"
    assert ("regretted" in operator.checkout.names()) is (name not in GOES_BACK)
