"""Commands that operators know, typed as they know them: each works, or does what RUNBOOK.md's table says."""

import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e.checkout import CONTAINER, Checkout
from tests.e2e.known_commands import KNOWN, NOT_TYPED, OLD_BACKUP, Known
from tests.e2e.processes import ROOT, until

# What never ends by itself is ended as Ctrl-C would
_ENDLESS = re.compile(r"docker (logs -f|events|stats(?! .*--no-stream))")
_BRINGS_UP = re.compile(r"(docker-compose|docker) (up|start|restart)|make run")
_SUBSTITUTES = {
    r"(?<=localhost:)8000|(?<=-p )8000|(?<= :)8000": "PORT",
    # two commands are to name one minute, and what has an old name may be deleted by maintenance
    r"\$\(date \+%Y%m%d-%H%M\)": f"{datetime.now(UTC) - timedelta(hours=2):%Y%m%d-%H%M}",
    "20251110-1200": f"{datetime.now(UTC) - timedelta(days=1):%Y%m%d-%H%M}",
    r"cloud-native-poc:v1\.[12]\.0": "cloud-native-poc:e2e",
    "docker exec -it": "docker exec -i",
    r"lsof -ti [:\w]+": r"\g<0> -sTCP:LISTEN",  # without it this process is on the list, as a browser would be
}


def rows() -> dict[str, str]:
    """Of the table: how the second cell begins, by the first one's command."""
    table = (ROOT / "RUNBOOK.md").read_text().partition("| you type | what happens |")[2].partition("\n\n")[0]
    lines = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in table.splitlines() if line.startswith("| `")]
    return {
        command.replace(r"\|", "|"): cells[1].partition(" ")[0].strip(",")
        for cells in lines
        for command in re.findall("`([^`]+)`", cells[0])
    }


def row_of(command: str) -> str:
    """How the table's row for a command begins, or nothing."""
    line = " ".join(command.replace("\\\n", " ").split())
    found = {what for part, what in rows().items() if all(piece in line for piece in part.split("..."))}
    assert len(found) < 2, f"two rows for {command}"
    return "".join(found)


def test_table_has_what_has_changed_and_nothing_else() -> None:
    typed = {known.command: known.in_table for group in KNOWN.values() for known in group} | NOT_TYPED
    assert {command: row_of(command) for command in typed} == typed
    lines = [" ".join(command.replace("\\\n", " ").split()) for command in typed]
    assert [part for part in rows() if not any(all(p in line for p in part.split("...")) for line in lines)] == []


@pytest.fixture(scope="module")
def service(checkout: Checkout) -> Iterator[Checkout]:
    checkout.begin_anew()
    checkout.add("kept")
    checkout.sh("docker tag cloud-native-poc:latest cloud-native-poc:e2e")
    type_in(checkout, f'sqlite3 data/app.db ".backup {OLD_BACKUP}"; gzip --keep {OLD_BACKUP}')
    checkout.sh(f"docker exec {CONTAINER} python -m infra backup")
    yield checkout
    checkout.sh("docker rmi cloud-native-poc:e2e")


def type_in(checkout: Checkout, command: str) -> tuple[int, str]:
    """The exit code of a command as somebody types it, and what it prints."""
    for pattern, text in _SUBSTITUTES.items():
        command = re.sub(pattern, text, command).replace("PORT", str(checkout.port))
    if _ENDLESS.match(command):
        command = f"timeout -k 1 2 {command} || test $? -ge 124"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = checkout.run(command, PATH=path)
    errors = re.sub("^exit code .*\n", "", done.stderr, flags=re.MULTILINE)
    return done.returncode, done.stdout + errors


@pytest.mark.e2e
@pytest.mark.parametrize("purpose", KNOWN)
def test_commands_that_operators_know_do_what_the_table_says(service: Checkout, purpose: str) -> None:
    if not service.is_ready():
        service.sh("docker rm -f cloud-native-poc; docker compose up -d --wait")
    for known in KNOWN[purpose]:
        check(service, known)
    until(service.is_ready)
    assert "kept" in service.names()
    assert service.sh("git ls-files --others --exclude-standard") == ""


def check(service: Checkout, known: Known) -> None:
    code, output = type_in(service, known.command)
    assert (code != 0) is known.fails, f"{known.command}\n{output}"
    assert re.search(known.shows, output, re.MULTILINE), f"{known.command}\n{output}"
    if code == 0 and _BRINGS_UP.search(known.command):
        until(service.is_ready)
