import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e.checkout import Checkout, checked_out, why_no_container
from tests.e2e.processes import Process, StartProcess, starting_processes
from tests.e2e.stores import S3, bucket_at, start_ministack, start_moto


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that cannot run here is a failure: nobody would see that it was left out."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} would be skipped: {report.longreprtext}"
    return report


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[StartProcess]:
    with starting_processes(DATABASE_PATH=str(tmp_path / "data" / "app.db"), PORT="0") as start:
        yield start


class Server:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.client = httpx2.Client(
            base_url=process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1], timeout=30, trust_env=False
        )


@pytest.fixture
def start_server(start_process: StartProcess) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**environment: str) -> Server:
        server = Server(start_process(sys.executable, "-m", "handler", **environment))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.client.close()


@pytest.fixture(scope="session")
def ministack_endpoint() -> Iterator[str]:
    with starting_processes() as start:
        yield start_ministack(start)


@pytest.fixture(scope="session")
def locked_moto_endpoint() -> Iterator[str]:
    with starting_processes() as start:
        yield start_moto(start)


@pytest.fixture
def bucket(ministack_endpoint: str) -> Iterator[S3]:
    with bucket_at(ministack_endpoint) as s3:
        yield s3


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """The service in a container, not yet started."""
    if reason := why_no_container():
        pytest.skip(reason)
    with checked_out(tmp_path_factory.mktemp("project")) as checkout:
        yield checkout
