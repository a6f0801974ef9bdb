"""Make the evidence for an audit from one run of the service under load: make evidence

Needs Docker, wrk and Chromium. Exit code 0: docs/evidence/ has four new files; 1: the load was not served as it should
be; 2: something is missing here.
"""

import argparse
import base64
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from playwright.sync_api import expect

from tests.drills.place import NAME, Place, Setup, made_place
from tests.e2e.browser import browsing
from tests.e2e.checkout import why_no_container
from tests.e2e.processes import ROOT
from tests.evidence.heading import Heading, commit, heading_of

LOAD = "tests/evidence/load.lua"
_WIDTH = 1280  # of the picture
_CAPTION = 18  # height of a line below it
_LINES_OF_REQUESTS = 5  # of each kind, in the run log
_MAINTAINED_SECONDS = 30  # instead of an hour: what it does then is to be seen, too
_SEEN_SECONDS = _MAINTAINED_SECONDS + 12  # until it has done so, and has looked at itself, once more


class Phase(NamedTuple):
    name: str
    connections: int
    writes: int  # of a hundred requests


PHASES = (Phase("writes", 32, 100), Phase("reads", 8, 0), Phase("reads and writes", 16, 10))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence", description=__doc__)
    parser.add_argument("--seconds", type=int, default=300, help="of load, a third for each kind; 300 unless given")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "evidence", help="docs/evidence unless given")
    arguments = parser.parse_args()
    if reason := _missing():
        print(reason, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the container is removed first
    arguments.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="evidence-") as scratch, made_place(Path(scratch) / "place") as place:
        failed = _make(place, Path(scratch), arguments.seconds, arguments.output)
    return int(failed)


def _missing() -> str:
    if not shutil.which("wrk"):
        return "needs wrk: apt-get install wrk"
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        return "needs Chromium: apt-get install chromium"
    return why_no_container(NAME)


def _make(place: Place, scratch: Path, seconds: int, output: Path) -> bool:
    place.environment |= {"REVISION": commit(), "COVERAGE": _coverage()}
    place.environment["MAINTENANCE_INTERVAL_SECONDS"] = str(_MAINTAINED_SECONDS)
    place.begin(Setup.DIRECTORY)
    heading = heading_of(f"make evidence SECONDS={seconds}")
    with _following(place, scratch / "log"):
        load = []
        for phase in PHASES:
            load.append(_loaded(place, phase, max(1, seconds // len(PHASES))))
            place.sh(f"docker exec {NAME} python -m infra backup && docker exec {NAME} python -m infra drill")
        time.sleep(_SEEN_SECONDS)
        picture = _picture(place)
        export = {name: _asked(place, path) for name, path in EXPORTED.items()}
        place.sh(f"docker stop {NAME}")
    texts = {
        "screenshot.svg": _svg(picture, heading),
        "run-log.txt": _run_log((scratch / "log").read_text(), heading),
        "dashboard-export.json": json.dumps({"made": heading._asdict(), **export}, indent=2) + "\n",
        "load-test-summary.txt": "\n".join([*_comment(heading), "", *load]),
    }
    for name, text in texts.items():
        if told := _telling(text, place, scratch):
            raise RuntimeError(f"{name} would show {told!r}, which is this machine's")
        (output / name).write_text(text)
        print(f"{output / name}: {len(text):,} bytes", flush=True)
    return any("statuses of 400 and above 0, time-outs 0, broken connections 0" not in one for one in load)


EXPORTED = {"status": "/ops/status", "hour": "/ops/history?span=hour", "day": "/ops/history?span=day"}


def _coverage() -> str:
    """What `make test-coverage` has measured of this very commit, in percent; empty if it has not."""
    path = ROOT / ".coverage-of-revision"
    revision, _, percent = path.read_text().strip().partition(" ") if path.exists() else ("", "", "")
    return percent if revision == commit() else ""


def _asked(place: Place, path: str) -> Any:
    answer = place.client.get(path)
    answer.raise_for_status()
    return answer.json()


@contextmanager
def _following(place: Place, path: Path) -> Iterator[None]:
    """All that the container logs, to the end, also what Docker would have thrown away."""
    with path.open("wb") as file:
        follower = subprocess.Popen(["docker", "logs", "-f", NAME], stdout=file, stderr=file)
        try:
            yield
            follower.wait(30)
        finally:
            follower.kill()
            follower.wait()


def _loaded(place: Place, phase: Phase, seconds: int) -> str:
    command = ["wrk", "-t2", f"-c{phase.connections}", f"-d{seconds}s", "--latency", "-s", LOAD]
    command += [f"http://localhost:{place.port}", "--", str(phase.writes)]
    print(" ".join(command), flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 60)
    return f"== {phase.name} ==\n$ {' '.join(command)}\n{done.stdout}{done.stderr}"


def _picture(place: Place) -> bytes:
    with browsing() as browser:
        page = browser.new_page(viewport={"width": _WIDTH, "height": 900}, color_scheme="light")
        page.goto(f"{place.client.base_url}/dashboard")
        expect(page.locator("#content")).to_be_visible()
        page.wait_for_timeout(2000)  # the plots
        return page.screenshot(full_page=True)


def _svg(picture: bytes, heading: Heading) -> str:
    """The picture itself, with its heading below it."""
    width, height = (int.from_bytes(picture[start : start + 4], "big") for start in (16, 20))
    lines = [escape(line) for line in heading.lines()]
    below = [f'<text x="16" y="{height + _CAPTION * (i + 1)}">{line}</text>' for i, line in enumerate(lines)]
    total = height + _CAPTION * (len(lines) + 1)
    data = base64.b64encode(picture).decode()
    return "\n".join(
        [
            "<!--",
            *lines,
            "-->",
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" '
            'role="img" aria-labelledby="title">',
            f'<title id="title">The dashboard of release {heading.release}, under load</title>',
            f'<rect width="{width}" height="{total}" fill="white"/>',
            f'<image width="{width}" height="{height}" href="data:image/png;base64,{data}"/>',
            '<g font-family="monospace" font-size="12" xml:space="preserve">',
            *below,
            "</g>",
            "</svg>\n",
        ]
    )


def _run_log(text: str, heading: Heading) -> str:
    """All lines but those of requests that were answered as many before them, of which the first ones show the form."""
    shown: list[str] = []
    seen = Counter[str]()
    lines = text.splitlines()
    for line in lines:
        record = json.loads(line) if line.startswith("{") else {}
        is_request = "status_code" in record
        kind = str(record.get("message"))
        seen[kind] += is_request
        if not is_request or seen[kind] <= _LINES_OF_REQUESTS:
            shown.append(line)
    note = f"# lines:   {len(shown)} of {len(lines)}; left out: requests answered as {_LINES_OF_REQUESTS} before them"
    return "\n".join([*_comment(heading), note, *shown, ""])


def _comment(heading: Heading) -> list[str]:
    return [f"# {line}" for line in heading.lines()]


def _telling(text: str, place: Place, scratch: Path) -> str:
    """What in it says which machine made it; empty if nothing does."""
    names = [str(ROOT), str(scratch), str(Path.home()), str(place.directory)]
    host = socket.gethostname()
    found = [name for name in names if len(name) > 5 and name in text]
    if host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text):
        found.append(host)
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
