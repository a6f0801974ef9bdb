"""`make audit`, against something that answers as osv.dev does."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scripts.known_fixes import pinned, served

ROOT = Path(__file__).parent.parent


class Api(ThreadingHTTPServer):
    """Knows one vulnerability."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[dict[str, Any]] = []
        self.package = {"ecosystem": "npm", "name": "dompurify"}
        self.events = [{"introduced": "0"}, {"fixed": "99.0.0"}]
        self.broken = False


class Answers(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        self.server.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["queries"]
        known = {"vulns": [{"id": "GHSA-1"}]}
        self._answer({"results": [known if q["package"] == self.server.package else {} for q in self.server.asked]})

    def do_GET(self) -> None:
        assert self.path == "/v1/vulns/GHSA-1"
        ranges = [{"type": "GIT", "events": [{"fixed": "abc"}]}, {"type": "SEMVER", "events": self.server.events}]
        self._answer({"summary": "XSS", "affected": [{"package": self.server.package, "ranges": ranges}]})

    def _answer(self, body: dict[str, Any]) -> None:
        self.send_response(503 if self.server.broken else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def audit(api: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/known_fixes.py", "--api", api, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_what_is_served_to_browsers_is_none_with_a_known_fix() -> None:
    versions = {package.name: tuple(map(int, package.version.split("."))) for package in served()}
    assert versions["swagger-ui-dist"] >= (5, 32, 5)
    assert versions["dompurify"] > (3, 2, 4)
    assert versions["chart.js"] >= (4, 0)
    assert versions["date-fns"] >= (2, 29)


def test_every_pin_and_every_part_is_asked_about(api: Api) -> None:
    api.package = {}
    done = audit(api.url)
    assert (done.returncode, done.stderr) == (0, "")
    asked = {(query["package"]["ecosystem"], query["package"]["name"], query["version"]) for query in api.asked}
    assert asked == pinned() | served()
    assert {"starlette", "aws-sam-cli", "ministack", "zizmor", "dompurify"} <= {name for _, name, _ in asked}


@pytest.mark.parametrize("options", [(), ("--may-skip",)])
def test_what_has_a_known_fix_fails(api: Api, options: tuple[str, ...]) -> None:
    done = audit(api.url, *options)
    assert done.returncode == 1
    (part,) = [package for package in served() if package.name == "dompurify"]
    assert f"dompurify {part.version}: GHSA-1, fixed in 99.0.0: XSS\n" in done.stdout


def test_what_has_no_fix_yet_is_named(api: Api) -> None:
    api.package, api.events = {"ecosystem": "PyPI", "name": "starlette"}, [{"introduced": "0"}]
    done = audit(api.url)
    assert done.returncode == 0
    assert "GHSA-1, no fix yet: XSS\n" in done.stdout


@pytest.mark.parametrize("broken", [True, False])
def test_nobody_to_ask_is_no_answer(api: Api, broken: bool) -> None:
    api.broken = broken
    url = api.url if broken else "http://127.0.0.1:9"
    done = audit(url)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{url} cannot be asked for known fixes: ")
    skipped = audit(url, "--may-skip")
    assert skipped.returncode == 0
    assert skipped.stderr.startswith("SKIPPED: ")
