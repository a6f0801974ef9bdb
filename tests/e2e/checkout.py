"""A clone of the project, in which its Makefile and Compose file run the service in a container."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.e2e.processes import ROOT, free_port

CONTAINER = "cloud-native-poc"
# Says which command of a script failed, and goes on with the next, as whoever types them would
_REPORT = "set -E; trap 'echo \"exit code $? of: $BASH_COMMAND\" >&2' ERR\n"


class Checkout:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.data = directory / "data"
        # asked for more often than the image says, or most of the time here would be waiting
        (directory / "docker-compose.override.yml").write_text("services: {app: {healthcheck: {interval: 1s}}}\n")
        self._environment = {
            **os.environ,
            "PORT": str(self.port),
            "S3_PORT": str(free_port()),
            "S3_APP_PORT": str(free_port()),
            "COMPOSE_ANSI": "never",
        }
        self.client = httpx2.Client(base_url=f"http://localhost:{self.port}", timeout=30, trust_env=False)

    def run(self, script: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """The script's result, with a line `exit code N of: ...` in stderr for each command of it that failed."""
        return subprocess.run(
            ["bash", "-c", _REPORT + script],
            cwd=self.directory,
            env={**self._environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def sh(self, script: str, seconds: float = 300, **environment: str) -> str:
        """What the script prints. Every command in it must succeed."""
        result = self.run(script, seconds, **environment)
        assert result.returncode == 0 and "exit code" not in result.stderr, f"{script}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def inspect(self, container: str = CONTAINER) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sh(f"docker inspect {container}"))[0]
        return found

    def start(self, **environment: str) -> None:
        self.sh("make run", **environment)

    def add(self, name: str) -> int:
        answer = self.client.post("/api/items", json={"name": name})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def names(self) -> list[str]:
        answer = self.client.get("/api/items", params={"limit": 100})
        assert answer.status_code == 200, answer.text
        return [item["name"] for item in answer.json()["items"]]

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.sh(f"docker logs {CONTAINER} 2>&1").splitlines()]

    def close(self) -> None:
        self.client.close()
        self.run("make stop; docker compose --profile s3 down --volumes")


def cloned(directory: Path) -> Path:
    """A clone of the project as it lies here, whatever of it is committed; its own `origin` is beside it."""
    origin = directory / "origin"
    identity = "-c user.name=test -c user.email=test@example.com"
    script = f"""
        set -e
        mkdir -p {origin}
        if git rev-parse --git-dir >/dev/null 2>&1; then git ls-files -z --cached --others --exclude-standard
        else find . -type f -not -path './.venv*' -printf '%P\\0'; fi |
          xargs -0 sh -c 'for f; do test -e "$f" && printf "%s\\0" "$f"; done' sh | tar -cf - --null -T - | tar -xf - -C {origin}
        cd {origin}
        git init -q -b main && git add -A && git {identity} commit -q -m state
        git clone -q {origin} {directory / "clone"}
    """
    subprocess.run(["bash", "-c", script], cwd=ROOT, check=True)
    return directory / "clone"


@contextmanager
def checked_out(directory: Path) -> Iterator[Checkout]:
    checkout = Checkout(cloned(directory))
    try:
        yield checkout
    finally:
        checkout.close()


def why_no_container() -> str:
    """Why containers cannot be tested here; empty if they can."""
    engine = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True, check=False)
    if engine.returncode:
        return f"needs docker with compose: {engine.stderr.strip()}"
    engine = subprocess.run(["docker", "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, check=False)
    if engine.returncode:
        return f"needs a Docker engine: {engine.stderr.strip()}"
    if CONTAINER in engine.stdout.split():
        return f"a container named {CONTAINER} is here already: `make stop` first"
    return ""
