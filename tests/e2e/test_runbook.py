"""The commands of RUNBOOK.md and docs/containers.md, typed as they stand there beside the running service."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.e2e.checkout import CONTAINER, PROJECT, Checkout
from tests.e2e.pages import blocks
from tests.e2e.processes import until

pytestmark = pytest.mark.e2e

# What would never end, asks the world outside, or has a test or a CI step of its own
_INSTEAD = {
    r"docker logs -f cloud-native-poc": "{ timeout 2 docker logs -f cloud-native-poc || test $? = 124; }",
    r"docker exec -it": "docker exec -i",
    r"docker pull \S+|\.venv/bin/pip list --outdated|make audit": "true",
    r"git clone <repository> .*": "",
    r"\bmake (test|evidence)\b": "true",
    # a release or a volume that somebody has on this machine stays what it is
    r"-v items:": "-v items-e2e:",
    r"v0\.[12]\.0": "e2e",
}
# A pipe whose reader has enough, a search that finds nothing, and a day with as many restarts as there are here
_NO_FAILURE = re.compile("exit code 141 of|exit code 1 of: grep|exit code 3 of: docker exec cloud-native-poc .* status")
_OF_THE_PLACE = "memory|CPU|disk|state +degraded .*started again"

BLOCKS = {block.name: block for block in blocks("RUNBOOK.md")}
CONTAINERS = {block.name: block.script for block in blocks("docs/containers.md")}
ALERTS = [name for name in BLOCKS if name.startswith("Alert: ")]
# `Tests` is what CI does, step by step; tests/e2e/test_move.py moves, beside servers that are written to
RUN = [name for name in BLOCKS if name not in {"Tests", "Move to PostgreSQL", "Move back to a log", *ALERTS}]
# That, images for the world outside, and what needs an account
NOT_RUN = {
    "Tests": BLOCKS["Tests"].script,
    **{
        name: CONTAINERS[name]
        for name in ("Pinned", "For another processor", "With Prometheus, Alertmanager and Grafana")
    },
    **{f"On AWS Lambda: {block.name}": block.script for block in blocks("docs/lambda.md")},
}

GOES_BACK = {"Restore", "Restore a backup", "Complete data loss"}


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

    def look_into_what_was_kept(self) -> None:
        """And delete it: until then it is an alert."""
        self.checkout.as_root("rm -f data/app.db.diverged-* data/app.db.changes-*")

    def types(self, script: str) -> str:
        """Runs it as written, but for dates, names, the port and `_INSTEAD`. What it printed, errors included."""
        for pattern, text in _INSTEAD.items():
            script = re.sub(pattern, text, script)
        for pattern, text in {
            r"(?<!\d{4}:)\b8000\b": str(self.checkout.port),
            r"2026-01-31T1\d:\d\d:00Z": self.moment.isoformat().replace("+00:00", "Z"),
            r"app-20260131-1200\b": self.backup,
            r"\bNAME\b": self.backup,
            r"-txid \d+[a-f0-9]+": "",
            r"\bsudo ": "" if os.getuid() == 0 else "sudo ",
            r"cloud-native-poc_default": f"{PROJECT}_default",
        }.items():
            script = re.sub(pattern, text, script)
        # The shell reports no failure in the middle of an && list
        lines = (line if '[ "' in line else re.sub(" && (?=[a-z])", "\n", line) for line in script.split("\n"))
        script = "\n".join(lines)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        result = self.checkout.run(script, PATH=path)
        output = result.stdout + result.stderr
        failed = [line for line in result.stderr.splitlines() if re.match("exit code |bash: ", line)]
        assert [line for line in failed if not _NO_FAILURE.match(line)] == [], f"{script}\n{output}"
        return output


@pytest.fixture(scope="module")
def operator(checkout: Checkout) -> Iterator[Operator]:
    yield Operator(checkout)
    checkout.sh("docker rmi cloud-native-poc:e2e")


@pytest.fixture
def healthy(operator: Operator) -> None:
    if operator.checkout.health() != "healthy":
        operator.checkout.sh("docker compose up -d --wait")


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("name", RUN)
def test_block_works_as_written_and_loses_nothing(operator: Operator, name: str) -> None:
    operator.look_into_what_was_kept()
    if "diverged-" in BLOCKS[name].script:  # it is to be removed
        operator.checkout.as_root("touch data/app.db.diverged-1")
    operator.checkout.add(name)
    output = operator.types(BLOCKS[name].script)
    assert not re.search(f"ALERT: (?!{_OF_THE_PLACE})", output)
    operator.checkout.sh("docker compose up -d --wait")
    # A server may show what was the newest state up to READ_FRESHNESS_SECONDS ago, so a restore needs that long
    until(lambda: (name in operator.checkout.names()) is (name not in GOES_BACK), seconds=5)
    assert operator.checkout.names()[0] == "kept"


@pytest.mark.usefixtures("healthy")
def test_first_commands_of_every_alert_work_as_written(operator: Operator) -> None:
    """They only look, and many alerts begin alike: each line once."""
    operator.look_into_what_was_kept()
    operator.types("\n".join(dict.fromkeys(line for name in ALERTS for line in BLOCKS[name].script.splitlines())))


@pytest.mark.parametrize("name", NOT_RUN)
def test_block_that_is_not_run_is_shell_at_least(name: str) -> None:
    subprocess.run(["bash", "-n", "-c", NOT_RUN[name]], check=True)


@pytest.mark.usefixtures("healthy")
def test_containers_start_as_the_page_says(operator: Operator) -> None:
    operator.checkout.sh("make stop")
    container = operator.types(CONTAINERS["Without Compose"]).split()[0]
    try:
        until(operator.checkout.is_ready)
        operator.checkout.add("in a volume")
    finally:
        operator.checkout.sh(f"docker rm --force {container} && docker volume rm items-e2e")
    operator.types(CONTAINERS["With a local S3"])
    operator.checkout.start()
    assert "kept" in operator.checkout.names()
