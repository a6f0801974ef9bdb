import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e.processes import Process, StartProcess, starting_processes
from tests.e2e.stores import S3, bucket_at, start_ministack, start_moto


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
