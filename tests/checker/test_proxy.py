"""The proxy does what it says: what the store has seen, and what the caller hears."""

import http.client
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.checker.proxy import FAULTS, Proxy
from tests.e2e.processes import free_port

COMMIT = "/bucket/log/0000/0000000000000001-0000000000000001.ltx"
BODY = b"stored, and this is the answer"
Heard = int | type[Exception]


class Store(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.shutdown()
    store.server_close()


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with closing(Proxy(f"http://127.0.0.1:{store.server_port}", free_port(), random.Random(1))) as proxy:
        proxy.patience = 0.1
        yield proxy


def put(proxy: Proxy, path: str = COMMIT) -> Heard:
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)) as connection:
        try:
            connection.request("PUT", path, b"x")
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            return type(error)
        return response.status


ENDED: set[Heard] = {
    http.client.RemoteDisconnected,
    http.client.IncompleteRead,
    http.client.BadStatusLine,
    ConnectionResetError,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_what_its_name_says(fault: str, store: Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.checker.proxy.FAULTS", [fault])
    proxy.weather = (1.0, 0.0)
    heard = put(proxy)
    assert len(store.seen) == {"repeated": 2}.get(fault, int("before" not in fault))
    assert proxy.faults == {fault: 1}
    if fault in ("late", "late reply", "repeated"):
        assert heard == 200
    elif "error" in fault or fault in ("conflict before", "expired before"):
        assert isinstance(heard, int)
        assert heard >= 400
    else:
        assert heard in ENDED


def test_reset_is_a_reset(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.checker.proxy.FAULTS", ["reset after"])
    proxy.weather = (1.0, 0.0)
    assert put(proxy) is ConnectionResetError


def test_weather_is_for_commits_or_for_others(store: Store, proxy: Proxy) -> None:
    proxy.weather = (1.0, 0.0)
    assert put(proxy, "/bucket/log/0001/0000000000000001-0000000000000010.ltx") == 200
    assert put(proxy, "/bucket/log/maintenance.json") == 200
    assert not proxy.faults


def test_blackout_begins_right_after_a_stored_commit_and_ends(store: Store, proxy: Proxy) -> None:
    proxy.black_out_after_commit([proxy], 3600)
    assert put(proxy, "/bucket/log/maintenance.json") == 200
    assert put(proxy) is ConnectionResetError
    assert put(proxy) in (ConnectionResetError, ConnectionRefusedError)
    assert len(store.seen) == 2
    proxy.heal()
    while put(proxy) != 200:
        pass
    assert len(store.seen) == 3
