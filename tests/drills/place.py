"""Where the drills are: the service in a container of its own name, built from this checkout, and a writer."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

from tests.e2e.checkout import CONTAINER, Checkout, cloned
from tests.e2e.processes import until

NAME = "cloud-native-poc-drill"  # whatever runs here under the service's own name is left alone

# Or most of the time would be waiting for the image's check
_OFTEN = "services: {app: {healthcheck: {interval: 1s}, hostname: service}}\n"
_SMALL_DISK = """\
services:
  app:
    healthcheck: {interval: 1s}
    volumes: ["small:/app/data"]
volumes:
  small:
    driver_opts: {type: tmpfs, device: tmpfs, o: "size=24m,uid=1000,gid=1000"}
"""
_IN_A_BUCKET = """\
REPLICA_URL=s3://items/log
BACKUP_URL=s3://items/backups
AWS_ENDPOINT_URL_S3=http://s3:9000
AWS_REGION=us-east-1
AWS_ACCESS_KEY_ID=test
AWS_SECRET_ACCESS_KEY=test
"""


class Setup(StrEnum):
    DIRECTORY = "log and backups beside the database"
    SMALL_DISK = "the same, on a disk of 24 MB"
    BUCKET = "log and backups in a bucket"


class Place(Checkout):
    """A clone of the project whose container, image and volumes have a name of their own."""

    def __init__(self, directory: Path) -> None:
        for file in (directory / "docker-compose.yml", directory / "Makefile"):
            file.write_text(file.read_text().replace(CONTAINER, NAME))
        super().__init__(directory)
        self.environment["COMPOSE_PROJECT_NAME"] = NAME

    def begin(self, setup: Setup) -> None:
        """Start the service anew, without data."""
        self._clear()
        (self.directory / "docker-compose.override.yml").write_text(
            _SMALL_DISK if setup is Setup.SMALL_DISK else _OFTEN
        )
        (self.directory / ".env").write_text(_IN_A_BUCKET if setup is Setup.BUCKET else "")
        if setup is Setup.BUCKET:
            self.sh("docker compose --profile s3 up -d --build --wait s3")
        self.start()

    def _clear(self) -> None:
        self.run("docker compose --profile s3 down --volumes --remove-orphans")
        self.as_root("rm -rf data backups")

    def close(self) -> None:
        self.client.close()
        self._clear()
        # by name: an image may have another name as well, which is somebody's
        self.run(f"docker images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' {NAME} | xargs -r docker rmi")

    def types(self, script: str, **parts: str) -> str:
        """Run a line of the runbook as it stands, but for names, the port, and what only the world outside has."""
        for part, value in parts.items():
            script = script.replace(part, value)
        script = script.replace(CONTAINER, NAME).replace("localhost:8000", f"localhost:{self.port}")
        script = script.replace("make test", "true")
        if os.getuid() == 0:
            script = script.replace("sudo ", "")
        print(f"    $ {script}", flush=True)
        return self.sh(script)

    def state(self) -> tuple[str, int]:
        """The container's, and its exit code."""
        found = self.inspect(NAME)["State"]
        return found["Status"], found["ExitCode"]

    def ready(self) -> str:
        """What /ready says, in one line."""
        try:
            answer = self.client.get("/ready", timeout=3)
        except httpx2.HTTPError as error:
            return f"/ready: no answer ({type(error).__name__})"
        return f"/ready: {answer.status_code} {answer.text}"

    def status(self) -> str:
        """What /ops/status says in a word, with the alerts that fire."""
        with suppress(httpx2.HTTPError):
            answer = self.client.get("/ops/status", timeout=3)
            if answer.status_code == 200:
                alerts = ", ".join(alert["name"] for alert in answer.json()["alerts"])
                return f"/ops/status: {answer.json()['state']}" + (f" ({alerts})" if alerts else "")
        return "/ops/status: no answer"

    def errors(self) -> list[str]:
        """ERROR and CRITICAL lines of the container that is there now."""
        lines = self.run(f"docker logs {NAME} 2>&1").stdout.splitlines()
        records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]
        return [str(record["message"]) for record in records if record["level"] in ("ERROR", "CRITICAL")]

    def items(self) -> dict[str, int]:
        """All of them, by name: how often each is there."""
        answer = self.client.get("/api/items/export", headers={"Accept": "application/x-ndjson"})
        answer.raise_for_status()
        counts: dict[str, int] = {}
        for line in answer.text.splitlines():
            name = json.loads(line)["name"]
            counts[name] = counts.get(name, 0) + 1
        return counts


class Traffic:
    """Somebody who writes all the time, and notes what each write was told, and when."""

    def __init__(self, place: Place, prefix: str) -> None:
        self.acknowledged: dict[str, float] = {}  # name -> when
        self.refused: set[str] = set()  # nothing was stored, says the answer
        self.trouble = ""  # the newest answer that was no success
        self._place = place
        self._prefix = prefix
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        with httpx2.Client(base_url=self._place.client.base_url, timeout=30, trust_env=False) as client:
            for number in range(1_000_000):
                if self._stopping.wait(0.02):
                    return
                name = f"{self._prefix} {number}"
                try:
                    answer = client.post("/api/items", json={"name": name})
                except httpx2.HTTPError:
                    self.trouble = "no answer"
                    continue
                if answer.status_code == 201:
                    self.acknowledged[name] = time.monotonic()
                else:
                    problem = answer.json()
                    self.trouble = f"{answer.status_code} {problem.get('code')}"
                    if problem.get("stored") == "no":
                        self.refused.add(name)

    def start(self) -> None:
        self._thread.start()
        until(lambda: len(self.acknowledged) >= 20)

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident:
            self._thread.join()

    def goes_on(self) -> None:
        """Wait until one more write is acknowledged."""
        known = len(self.acknowledged)
        until(lambda: len(self.acknowledged) > known, seconds=60)

    def longest_pause(self) -> float:
        """Seconds between two acknowledged writes that came one after the other."""
        return max((later - sooner for sooner, later in pairwise(self.acknowledged.values())), default=0.0)


@contextmanager
def made_place(directory: Path) -> Iterator[Place]:
    place = Place(cloned(directory))
    try:
        yield place
    finally:
        place.close()
        shutil.rmtree(directory, ignore_errors=True)
