"""A clone of the project, in which its Makefile and Compose file run the service in a container."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from infra.settings import Settings
from tests.e2e.processes import ROOT, free_port, until

CONTAINER = "cloud-native-poc"
IMAGE = "cloud-native-poc:latest"
FUNCTION_IMAGE = "function:rapid-x86_64"  # what `sam local` runs
PROJECT = "cloud-native-poc-e2e"  # volumes and networks are not those of whoever works here
# Says which command of a script failed, and goes on with the next, as whoever types them would
_REPORT = "set -E -o pipefail; trap 'echo \"exit code $? of: $BASH_COMMAND\" >&2' ERR\n"


class Checkout:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.data = directory / "data"
        # asked for more often than the image says, or most of the time here would be waiting
        (directory / "docker-compose.override.yml").write_text(
            "services: {app: &often {healthcheck: {interval: 1s}}, app-s3: *often, app-postgres: *often}\n"
        )
        self.environment = {
            **_own_environment(),
            "COMPOSE_PROJECT_NAME": PROJECT,
            "SAM_DOCKER_NETWORK": f"{PROJECT}_default",
            "PORT": str(self.port),
            "S3_PORT": str(free_port()),
            "S3_APP_PORT": str(app_s3 := free_port()),
            "POSTGRES_PORT": str(free_port()),
            "POSTGRES_APP_PORT": str(app_postgres := free_port()),
            "COMPOSE_ANSI": "never",
        }
        self.app_s3 = f"http://localhost:{app_s3}"
        self.app_postgres = f"http://localhost:{app_postgres}"
        self._latest = self.run(f"docker image inspect --format '{{{{.Id}}}}' {IMAGE}").stdout.strip()
        self.client = httpx2.Client(base_url=f"http://localhost:{self.port}", timeout=30, trust_env=False)

    def run(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The script's result, with a line `exit code N of: ...` in stderr for each command of it that failed."""
        return subprocess.run(
            ["bash", "-c", _REPORT + script],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def sh(self, script: str, **environment: str) -> str:
        """What the script prints. Every command in it must succeed."""
        result = self.run(script, **environment)
        failed = result.returncode or "exit code" in result.stderr
        assert not failed, f"{script}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def inspect(self, container: str = CONTAINER) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sh(f"docker inspect {container}"))[0]
        return found

    def health(self, container: str = CONTAINER) -> str:
        return str(self.inspect(container)["State"]["Health"]["Status"])

    def wait_for(self, health: str, container: str) -> None:
        until(lambda: self.health(container) == health)

    def start(self) -> None:
        self.sh("make run")

    def begin_anew(self) -> None:
        """Starts the service without data."""
        self.sh("make stop")
        self.as_root("rm -rf data backups/*")
        self.start()

    def as_root(self, script: str) -> str:
        """On the host: what the container has written belongs to user 1000."""
        return self.sh(script if os.getuid() == 0 else f"sudo sh -c {shlex.quote(script)}")

    def add(self, name: str) -> int:
        answer = self.client.post("/api/items", json={"name": name})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def names(self) -> list[str]:
        answer = self.client.get("/api/items", params={"limit": 100})
        assert answer.status_code == 200, answer.text
        return [item["name"] for item in answer.json()["items"]]

    def is_ready(self) -> bool:
        with suppress(httpx2.HTTPError):
            return self.client.get("/ready").status_code == 200
        return False

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.sh(f"docker logs {CONTAINER} 2>&1").splitlines()]

    def close(self) -> None:
        self.client.close()
        self.run("make stop; docker compose --profile '*' down --volumes")
        self.run(f"docker tag {self._latest} {IMAGE}" if self._latest else f"docker rmi {IMAGE}")


def _own_environment() -> dict[str, str]:
    """Without what would reach the service, Compose or make: somebody's bucket, say."""
    foreign = {str(field.alias) for field in Settings.model_fields.values()} | {"BASE_IMAGE", "VERSION", "REVISION"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in foreign and not name.startswith(("AWS_", "COMPOSE_", "MAKE"))
    }


def cloned(directory: Path) -> Path:
    """A clone of the project as it lies here, committed or not; what it was cloned from is beside it."""
    origin, clone = directory / "origin", directory / "clone"
    files = subprocess.check_output(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, text=True)
    for name in files.split("\0"):
        if (ROOT / name).is_file():
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, origin / name)
    git = "git -c user.name=test -c user.email=test@example.com"
    script = f"git init -qb main && git add -A && {git} commit -qm state && git clone -q . {clone}"
    subprocess.run(script, shell=True, cwd=origin, check=True)
    return clone


@contextmanager
def checked_out(directory: Path) -> Iterator[Checkout]:
    checkout = Checkout(cloned(directory))
    try:
        yield checkout
    finally:
        checkout.close()


def why_no_container(name: str = CONTAINER) -> str:
    """Why containers cannot be tested here under this name; empty if they can."""
    for command in ("docker compose version", "docker buildx version", "docker ps -a --format {{.Names}};{{.Image}}"):
        try:
            output = subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            return f"needs a Docker engine with compose and buildx: `{command}`: {getattr(error, 'stderr', error)}"
    here = [line.split(";") for line in output.splitlines()]
    if name in [there for there, _ in here]:
        return f"a container named {name} is here already: `make stop` first"
    if FUNCTION_IMAGE in [image for _, image in here]:
        return "a container of `sam local` is here already: end that first"
    return ""
