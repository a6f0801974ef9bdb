import asyncio
import gc
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import hypothesis
import pytest
import uvicorn
from moto.core.base_backend import BackendDict
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import create_backend_app
from moto.s3.models import s3_backends
from moto.server import MotoRequestHandler  # type: ignore[attr-defined]
from werkzeug.serving import make_server

from core import items
from core.schemas import NewItem
from handler.__main__ import server_config
from handler.asgi import create_app
from handler.problems import Code
from handler.service import Service, open_server_service
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase, open_sqlite
from infra.telemetry.metrics import Metrics
from tests.described import assert_described
from tests.infra.storage.certificates import Authority
from tests.log_watch import Watch
from tests.postgresql import Databases, database_name, database_url, migrated_url, postgresql

__all__ = ["database_name", "database_url", "migrated_url", "postgresql"]  # fixtures

hypothesis.settings.register_profile("plain", deadline=None)  # the time an example takes is no property
hypothesis.settings.load_profile("plain")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are processors, because tests also wait. Beyond eight they only start."""
    return min((os.cpu_count() or 1) + 2, 8)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--on",
        choices=["sqlite", "postgresql"],
        default="sqlite",
        help="what the services of the fixtures keep rows in",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--on") == "postgresql":
        for item in items:
            if mark := item.get_closest_marker("sqlite_only"):
                item.add_marker(pytest.mark.skip(reason=f"only of SQLite and its log: {mark.args[0]}"))


def pytest_collection_finish() -> None:
    """What the modules of all tests have brought stays: to look for garbage in it again and again takes long."""
    gc.collect()
    gc.freeze()


MakeSettings = Callable[..., Settings]

_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # one with the machine's authorities takes long to make


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on, or reaches, what the machine around it has set up."""
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.alias), raising=False)
    for name in ("AWS_LAMBDA_FUNCTION_NAME", "AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


_watch = Watch()


@pytest.fixture(autouse=True)
def _every_line_of_the_log_is_described() -> Iterator[None]:
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(_watch)
    yield
    root.removeHandler(_watch)
    faults, _watch.faults = _watch.faults, []
    assert faults == []


@pytest.fixture(scope="session", autouse=True)
def _cluster_if_asked_for(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.config.getoption("--on") == "postgresql":
        _on_postgresql.append(Databases(request.getfixturevalue("postgresql")))
    yield
    _on_postgresql.clear()


@pytest.fixture(autouse=True)
def _databases_go_with_their_directory(request: pytest.FixtureRequest) -> Iterator[None]:
    directory = request.getfixturevalue("tmp_path") if _on_postgresql and "tmp_path" in request.fixturenames else None
    yield
    if directory:
        _on_postgresql[0].drop(directory)


_on_postgresql: list[Databases] = []  # one, where the tests run on it


def settings_in(directory: Path, **environment: Any) -> Settings:
    defaults = {
        "DATABASE_PATH": str(directory / "data" / "app.db"),
        "MAINTENANCE_INTERVAL_SECONDS": "0",
        "BUSY_TIMEOUT_SECONDS": "1",
    }
    if _on_postgresql and "DATABASE_URL" not in environment:
        defaults["DATABASE_URL"] = _on_postgresql[0].url(directory)
        environment.pop("REPLICA_URL", None)  # those who share a log share the database instead
    return Settings.from_environment({**defaults, **{name: str(value) for name, value in environment.items()}})


@pytest.fixture
def make_settings(tmp_path: Path) -> MakeSettings:
    return partial(settings_in, tmp_path)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


def open_at(
    path: Path, busy_timeout: float = 0.2, give_up: Callable[[Exception], None] | None = None, **environment: str
) -> SqliteDatabase:
    """A server's database, with its log beside it."""
    return open_sqlite(
        Settings.from_environment(
            {"DATABASE_PATH": str(path), "BUSY_TIMEOUT_SECONDS": str(busy_timeout), **environment}
        ),
        give_up=give_up,
    )


def write(database: SqliteDatabase, name: str) -> None:
    asyncio.run(database.write(partial(items.create_item, new=NewItem(name=name))))


@pytest.fixture
def served_database(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """One that the commands find, stopped."""
    monkeypatch.setenv("DATABASE_PATH", str(settings.database_path))
    open_at(settings.database_path).close()


@contextmanager
def serving(
    service: Service, listening: list[socket.socket] | None = None, host: str = "127.0.0.1"
) -> Iterator[httpx2.Client]:
    """A real Uvicorn on a real socket, in this process; it closes the service at the end."""
    server = uvicorn.Server(
        server_config(create_app(service), service.settings.model_copy(update={"host": host, "port": 0}))
    )
    thread = threading.Thread(target=server.run, args=(listening,))
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx2.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=20,
            trust_env=False,
            verify=_NO_TLS,
            event_hooks={"response": [assert_described]},
        ) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def quick_machine() -> Iterator[None]:
    """Whatever machine this is: its disk is not full, and nothing takes long."""
    counted: Any = Metrics
    request_finished, query_finished = counted.request_finished, counted.query_finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infra.disk.volume.gauges", lambda directory: {})
        patch.setattr("infra.objectives.process.gauges", lambda: {"memory_bytes": 50_000_000.0})
        patch.setattr(Metrics, "request_finished", lambda *arguments: request_finished(*arguments[:-1], 0.003))
        patch.setattr(Metrics, "query_finished", lambda *arguments: query_finished(*arguments[:-1], 0.003))
        yield


@pytest.fixture
def service(settings: Settings) -> Service:
    return open_server_service(settings)


@pytest.fixture
def client(service: Service) -> Iterator[httpx2.Client]:
    with serving(service) as client:
        yield client


@pytest.fixture(scope="module")
def shared_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """Of one server, for all tests of a file that leave it as others expect it."""
    with serving(open_server_service(settings_in(tmp_path_factory.mktemp("shared")))) as client:
        yield client


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    moto, lock = create_backend_app("s3"), threading.Lock()

    def application(environ: Any, start_response: Any) -> list[bytes]:
        with lock:  # moto looks whether a key is there and then stores it: two creates at once would both succeed
            return list(moto(environ, start_response))

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Authority(tmp_path_factory.mktemp("authority"), "the only one that the machine trusts").file


@pytest.fixture
def s3(moto_endpoint: str, one_authority: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a prefix in a new bucket; the environment points at the server that has it."""
    # Every client reads what the machine trusts, some 300 files, and here there is no TLS
    monkeypatch.setenv("SSL_CERT_FILE", str(one_authority))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    BackendDict.reset()
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket("bucket", "us-east-1")
    return "s3://bucket/backups"


def spoiled(body: bytes) -> bytes:
    """Its last byte is another, whatever it was."""
    return body[:-1] + bytes([body[-1] ^ 1])


def assert_problem(response: httpx2.Response, status: int) -> dict[str, Any]:
    """Every error has this shape, whatever caused it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "code", "detail", "instance", "request_id"} <= body.keys()
    assert body["status"] == status == {str(code): code.status for code in Code}[body["code"]]
    assert body["request_id"] == response.headers["x-request-id"]
    return body
