"""The evidence that is kept in the repository: made by one run, of one commit, and all of it there."""

import base64
import json
import re
import subprocess
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from core import __version__
from infra.objectives.status import HistoryView, StatusView
from tests.evidence.heading import FILES, heading_of, read_heading

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "docs" / "evidence"
SVG = "{http://www.w3.org/2000/svg}"

TEXTS = {name: (EVIDENCE / name).read_text() for name in FILES}


def test_all_four_are_of_one_run() -> None:
    headings = [read_heading(text) for text in TEXTS.values()]
    assert list(headings[0]) == ["date", "release", "commit", "machine", "command"]
    assert headings == [headings[0]] * len(FILES)
    assert datetime.fromisoformat(headings[0]["date"]).tzinfo


def test_they_are_of_a_release_and_of_the_newest_that_is_out() -> None:
    found = re.findall(r"^## \[([\d.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    release = read_heading(TEXTS["run-log.txt"])["release"]
    assert release in dict(found)
    if found[0][1] != "Unreleased":
        assert release == __version__, "make evidence, before this release goes out"


def test_they_are_of_a_commit_of_this_history() -> None:
    commit = read_heading(TEXTS["run-log.txt"])["commit"]
    assert re.fullmatch("[0-9a-f]{40}", commit), "made from a checkout with changes"
    assert json.loads(TEXTS["dashboard-export.json"])["status"]["service"]["revision"] == commit
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("there is no history here")
    assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return subprocess.CompletedProcess(arguments, 127, "", "")


def test_screenshot_is_a_picture_that_an_svg_carries() -> None:
    root = ElementTree.fromstring(TEXTS["screenshot.svg"])
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {"svg", "title", "rect", "image", "g", "text"}
    image = root.find(f"{SVG}image")
    assert image is not None
    kind, _, data = image.attrib["href"].partition(",")
    picture = base64.b64decode(data, validate=True)
    assert (kind, picture[:8]) == ("data:image/png;base64", b"\x89PNG\r\n\x1a\n")
    sizes = [int.from_bytes(picture[start : start + 4], "big") for start in (16, 20)]
    assert sizes == [int(image.attrib[name]) for name in ("width", "height")]
    assert len(picture) > 50_000


def test_export_is_what_the_service_says_of_itself() -> None:
    export = json.loads(TEXTS["dashboard-export.json"])
    status = StatusView.model_validate(export["status"])
    assert status.service.version == export["made"]["release"]
    for span in ("hour", "day"):
        assert any(point.requests_per_second for point in HistoryView.model_validate(export[span]).points)


def test_load_was_served_without_errors() -> None:
    form = r"^requests (\d+) in .*? above (\d+), time-outs (\d+), broken connections (\d+)$"
    summaries = re.findall(form, TEXTS["load-test-summary.txt"], re.MULTILINE)
    assert len(summaries) == 3
    assert [summary[1:] for summary in summaries] == [("0", "0", "0")] * 3


def test_run_log_is_of_a_life_from_start_to_end() -> None:
    records = [json.loads(line) for line in TEXTS["run-log.txt"].splitlines() if not line.startswith("# ")]
    release = read_heading(TEXTS["run-log.txt"])["release"]
    assert any(record["message"].startswith(f"cloud-native-poc {release} serves ") for record in records)
    assert {record["level"] for record in records} <= {"INFO", "WARNING"}
    assert any(record["message"] == "maintenance done" for record in records)


def test_checklist_of_the_runbook_names_them_all() -> None:
    section = (ROOT / "RUNBOOK.md").read_text().partition("\n## Evidence\n")[2]
    linked = re.findall(r"\]\((docs/evidence/[^)]+)\)", section)
    assert sorted(linked) == sorted(f"docs/evidence/{name}" for name in FILES)
    assert [name for name in linked if not (ROOT / name).is_file()] == []


def test_nothing_says_whose_machine_it_was() -> None:
    assert [name for name, text in TEXTS.items() if re.search(r"/home/|/root/|/Users/|/work/|/tmp/", text)] == []


def test_heading_is_read_as_it_was_written() -> None:
    heading = heading_of("make evidence")
    for text in ("\n".join(heading.lines()), json.dumps({"made": heading._asdict()}, indent=2)):
        assert read_heading(text) == heading._asdict()
