"""A real PostgreSQL for tests: started by them, as a user who is not root, with whatever may happen to one."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.processes import free_port

if TYPE_CHECKING:
    import psycopg

_BINARIES = "/usr/lib/postgresql/*/bin"  # Debian's
_SECONDS = 60  # for whatever takes milliseconds on a quiet machine

_begins = ThreadPoolExecutor(1)  # its thread lives as long as the process

USER, PASSWORD = "app", "app-secret"  # of the service: it owns its databases, and is no superuser


@cache
def binaries() -> Path | None:
    """Of the newest PostgreSQL here."""
    found = sorted(Path("/").glob(_BINARIES.lstrip("/")), key=lambda path: int(path.parent.name))
    return next((path for path in reversed(found) if (path / "initdb").exists()), None)


def require_postgres() -> Path:
    """Skips the test that asks where there is none; with REQUIRE_POSTGRES it fails."""
    if path := binaries():
        return path
    reason = f"no PostgreSQL in {_BINARIES}: apt-get install postgresql"
    return pytest.fail(reason) if os.environ.get("REQUIRE_POSTGRES") else pytest.skip(reason)


class Cluster:
    """PostgreSQL in a directory of its own, on a socket there and a port of the loopback address.

    Passwords are asked for on the port; the socket takes everybody. It sorts by a language's rules, not by bytes.
    """

    def __init__(self, programs: Path, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count(1)
        self._templates: set[str] = set()
        self._run(
            "initdb", f"--pgdata={self._data}", "--username=postgres", "--auth-local=trust",
            "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu",
            "--icu-locale=en", "--no-sync", "--no-instructions",
        )  # fmt: skip
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = '{directory}'\n"
                "shared_buffers = 32MB\ndeadlock_timeout = 50ms\n"
                "fsync = off\n"  # what is written outlives its processes without
            )
        self.start()
        with self.superuser() as db:
            db.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self.directory / "log").read_text()

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD, port: int = 0) -> str:
        """As the service is given it; `port`: of what stands before the server."""
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.port}/{database}"

    def superuser(self, database: str = "postgres") -> "psycopg.Connection[Any]":
        """A connection that may do anything, each statement for itself."""
        import psycopg

        return psycopg.connect(
            host=str(self.directory), port=self.port, user="postgres", dbname=database, autocommit=True
        )

    def create_database(self, template: str = "template0") -> str:
        """A fresh one, by its name."""
        name = f"test_{next(self._names)}"
        with self.superuser() as db:
            db.execute(f"CREATE DATABASE {name} OWNER {USER} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        with self.superuser() as db:
            db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def template(self, name: str, prepare: Callable[[str], object]) -> str:
        """A database to make others from, prepared once: `prepare` is given its URL."""
        if name not in self._templates:
            with self.superuser() as db:
                db.execute(f"CREATE DATABASE {name} OWNER {USER} TEMPLATE template0")
            prepare(self.url(name))
            self._templates.add(name)
        return name

    def start(self, **settings: str) -> None:
        """`settings`: of postgresql.conf, until the next start."""
        options = [f"-c{name}={value}" for name, value in settings.items()]
        deadline = time.monotonic() + _SECONDS
        while not self._started(options):  # what an end with SIGKILL left in memory is soon gone
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """SIGTERM waits for the clients to go, SIGINT ends them, SIGQUIT does so without a checkpoint."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_SECONDS)
            self._process = None

    def kill(self) -> None:
        """As when the power goes: the postmaster and all of its processes, with SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # or it begins new ones
        for pid in [*self._children(), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(_SECONDS)
        self._process = None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It keeps its connections, and answers nothing; who waits all the same does so no longer than a minute."""
        assert self._process is not None
        stopped = [self._process.pid, *self._children()]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        timer = threading.Timer(_SECONDS, _go_on, [stopped])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            _go_on(stopped)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Connections are cut, and new ones refused."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _children(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _started(self, options: list[str]) -> bool:
        with (self.directory / "log").open("ab") as log:
            # With the process that runs the tests it ends as well, however that ends: with the thread that began it
            started = _begins.submit(
                lambda: subprocess.Popen(
                    [*_as_somebody("--pdeathsig=QUIT"), self._programs / "postgres", "-D", self._data, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
            self._process = started.result()
        while self._process.poll() is None:
            if (
                subprocess.run(
                    [self._programs / "pg_isready", "-q", "-h", self.directory, "-p", str(self.port)]
                ).returncode
                == 0
            ):
                return True
            time.sleep(0.02)
        return False

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([*_as_somebody(), self._programs / program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def _go_on(stopped: list[int]) -> None:
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Databases:
    """One for each directory in which a service is, with the newest schema."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._names: dict[Path, str] = {}

    def url(self, directory: Path) -> str:
        """The same for the same directory."""
        if directory not in self._names:
            self._names[directory] = self._cluster.create_database(self._cluster.template("migrated", _migrate))
        return self._cluster.url(self._names[directory])

    def drop(self, directory: Path) -> None:
        """Those of a directory and of what is in it."""
        for made in [made for made in self._names if made.is_relative_to(directory)]:
            self._cluster.drop_database(self._names.pop(made))


@contextmanager
def cluster() -> Iterator[Cluster]:
    """One that is running; it is gone afterwards."""
    programs = require_postgres()
    directory = Path(tempfile.mkdtemp(prefix="pg-"))  # pytest's own are closed to others, and too long for a socket
    try:
        if os.geteuid() == 0:
            os.chown(directory, _somebody().pw_uid, _somebody().pw_gid)
        started = Cluster(programs, directory)
        try:
            yield started
        finally:
            started.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _somebody() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError("neither a user postgres nor nobody, and PostgreSQL does not run as root")


def _as_somebody(*options: str) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return ["setpriv", *options] if options else []
    return ["setpriv", f"--reuid={_somebody().pw_uid}", f"--regid={_somebody().pw_gid}", "--clear-groups", *options]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """One for all tests of a worker. A test that ends it starts it again."""
    with cluster() as running:
        yield running


@pytest.fixture
def database_name(postgresql: Cluster) -> Iterator[str]:
    """Of a new and empty one."""
    name = postgresql.create_database()
    yield name
    postgresql.drop_database(name)


@pytest.fixture
def database_url(postgresql: Cluster, database_name: str) -> str:
    return postgresql.url(database_name)


@pytest.fixture
def migrated_url(postgresql: Cluster) -> Iterator[str]:
    """Of a new one with the newest schema."""
    name = postgresql.create_database(postgresql.template("migrated", _migrate))
    yield postgresql.url(name)
    postgresql.drop_database(name)


def _migrate(url: str) -> None:
    from core.migrations.postgresql import migrate
    from infra.postgresql.connections import Connection, PeeweeConnection

    driver = Connection.connect(url, autocommit=True)
    migrate(PeeweeConnection(driver))
    driver.close()
