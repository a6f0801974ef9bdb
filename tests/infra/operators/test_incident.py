import asyncio
import json
import re
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core import __version__
from core.api_keys import Scope, create
from handler.service import open_server_service
from infra.__main__ import main
from infra.operators.incident import Answer, LogFacts, asked_of, incident_report, read_log
from infra.settings import Settings
from tests.conftest import open_at, serving, write

pytestmark = pytest.mark.usefixtures("served_database")

KEY = "cnp_abcdefgh_" + "A" * 36
SILENT = Answer(0, "does not answer: refused")
METRICS = """\
# TYPE http_requests_total counter
http_requests_total{method="GET",route="/api/items",status="200"} 40.0
http_requests_total{method="POST",route="/api/items",status="200"} 2.0
http_requests_total{method="POST",route="/api/items",status="503"} 3.0
http_requests_created{method="POST",route="/api/items",status="503"} 1.7e9
build_info{version="0.2.0",revision="abc"} 1.0
commit_log_txid 7.0
process_start_time_seconds 1.7698608e9
odd nonsense
"""
STATUS: dict[str, Any] = {
    "state": "degraded",
    "since": "2026-01-31T11:58:00Z",
    "reason": "StoreAway",
    "alerts": [
        {"name": "SlowQueries", "severity": "P2", "summary": "slow", "since": "2026-01-31T11:59:00Z"},
        {"name": "StoreAway", "severity": "P1", "summary": "away", "since": "2026-01-31T11:58:00Z"},
    ],
    "objectives": [{"title": "Errors", "target": "< 1 %", "values": {"5m": 0.2, "30d": None}, "state": "broken"}],
    "errors": [{"at": "2026-01-31T11:58:01Z", "level": "ERROR", "message": "from status", "request_id": "r-9"}],
}


def line(second: int, level: str, message: str, **members: object) -> str:
    return json.dumps({"timestamp": f"2026-01-31T12:00:{second:02}Z", "level": level, "message": message, **members})


LOG = "\n".join(
    [
        line(0, "INFO", "cloud-native-poc 0.2.0 serves data/app.db"),
        line(1, "INFO", "GET /api/items 200"),
        line(2, "ERROR", "POST /api/items 503", code="store_unavailable", request_id="r-1", exception="secret"),
        line(3, "ERROR", "POST /api/items 503", code="store_unavailable", request_id="r-2"),
        "[1]",
        "no JSON at all",
        line(4, "CRITICAL", "cannot start: the log is away"),
        line(5, "INFO", "cloud-native-poc 0.2.0 serves data/app.db"),
    ]
)


def report(
    settings: Settings, log: str | None = LOG, severity: str | None = None, answers: dict[str, Answer] | None = None
) -> str:
    facts = LogFacts() if log is None else read_log(BytesIO(log.encode()))
    return incident_report(settings, "writes refused", severity, facts, lambda path: (answers or {}).get(path, SILENT))


def told(settings: Settings) -> str:
    return report(
        settings,
        answers={
            "/ready": Answer(200, '{"status": "degraded"}'),
            "/metrics": Answer(200, METRICS),
            "/ops/status": Answer(200, json.dumps(STATUS)),
        },
    )


def test_report_has_the_form_that_operators_know(settings: Settings) -> None:
    text = told(settings)
    assert text.startswith("# Application Incident Report: writes refused\n")
    for heading in ("Timeline", "Root Cause", "Action Items", "Facts"):
        assert f"\n## {heading}\n" in text
    for label in ("Date", "Severity", "Duration", "Component"):
        assert f"\n**{label}:** " in text
    assert "\n- [ ] " in text


def test_timeline_has_starts_alerts_and_each_error_once(settings: Settings) -> None:
    timeline = told(settings).partition("## Timeline")[2].partition("## Root")[0]
    events = re.findall(r"^- (?:2026-01-31T)?(\S+): (.*)$", timeline, re.MULTILINE)
    assert events[:-1] == [
        ("11:58:00Z", "alert StoreAway"),
        ("11:59:00Z", "alert SlowQueries"),
        ("12:00:00Z", "cloud-native-poc 0.2.0 serves data/app.db"),
        ("12:00:02Z", "POST /api/items 503 (2 times from here on)"),
        ("12:00:04Z", "cannot start: the log is away"),
        ("12:00:05Z", "cloud-native-poc 0.2.0 serves data/app.db"),
    ]
    assert events[-1][1] == "this report was begun"


def test_facts_are_those_of_the_service_that_runs(settings: Settings) -> None:
    text = told(settings)
    assert "**Severity:** P1\n" in text  # of the worst alert
    assert f'**Release:** {__version__} (version="0.2.0",revision="abc")' in text
    assert "(errors in the log from 2026-01-31T12:00:00Z to 2026-01-31T12:00:04Z)" in text
    assert "- state: degraded, since 2026-01-31T11:58:00Z: StoreAway" in text
    assert "- runs since 2026-01-31T12:00:00Z" in text
    assert "Errors · < 1 % · 5m 0.2, 30d - · broken" in text
    assert "2026-01-31T12:00:03Z · POST /api/items 503 · ERROR · store_unavailable · r-2" in text
    assert 'commit_log_txid 7\nprocess_start_time_seconds 1769860800\nhttp_requests_total{status="200"} 42\n' in text
    assert "http_requests_created" not in text
    assert "**Severity:** P0\n" in report(settings, severity="P0")


def test_newest_errors_are_asked_for_when_there_is_no_log(settings: Settings) -> None:
    text = report(settings, log=None, answers={"/ops/status": Answer(200, json.dumps(STATUS))})
    assert "from status · r-9" in text
    assert "starts in the log: not looked at (`--log`)" in text


def test_report_of_a_service_that_is_down_has_what_log_and_backups_say(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_at(settings.database_path)) as database:
        write(database, "kept")
    main(["backup"])
    main(["drill"])
    monkeypatch.setenv("PORT", "9")  # nobody's
    capsys.readouterr()
    assert main(["incident", "it is down", "--severity", "P0", "-o", str(tmp_path / "incidents"), "--json"]) == 0
    path = Path(json.loads(capsys.readouterr().out)["file"])
    assert re.fullmatch(r"incident-\d{8}-\d{4}\.md", path.name)
    text = path.read_text()
    assert "- `/ready`: does not answer: " in text
    assert re.search(r"^- commit log file://\S+: TXID 0{15}[1-9], stored at 20\S+Z$", text, re.MULTILINE)
    assert re.search(r"^- backups file://\S+: newest app-\S+\.db\.gz, [\d,]+ bytes$", text, re.MULTILINE)
    assert "- maintenance: has never succeeded" in text
    assert "- state: " in text  # by the history beside the database
    assert "Availability · " in text
    assert re.search(r"^- restore drill: took \d+\.\d s at 20\S+Z$", text, re.MULTILINE)


def test_store_that_is_away_is_said_in_its_place(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = report(make_settings(REPLICA_URL=f"file://{tmp_path}/file/log"))
    assert f"- commit log file://{tmp_path}/file/log: cannot be told: " in text
    assert "- backups file://" in text


def test_report_is_never_written_over_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "9")
    directory = tmp_path / "incidents"
    for _ in range(3):
        assert main(["incident", "again", "-o", str(directory)]) == 0
    assert len(list(directory.iterdir())) == 3
    assert capsys.readouterr().out.count(" is there to be completed\n") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "{file}/x"], "cannot be written"),
        (["--log", "{file}/x"], "cannot be read"),
        (["--log", "\0"], "be read"),
    ],
)
def test_place_that_cannot_be_used_is_said(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "9")
    (tmp_path / "file").touch()
    assert main(["incident", "x", *(argument.format(file=tmp_path / "file") for argument in arguments)]) == 2
    assert said in capsys.readouterr().err


def test_disk_that_is_full_leaves_no_empty_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "9")
    opened = Path.open

    def full(path: Path, *mode: Any, **options: Any) -> Any:
        path.touch()
        return opened(Path("/dev/full"), "w")

    monkeypatch.setattr(Path, "open", full)
    assert main(["incident", "x", "-o", str(tmp_path / "incidents")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "incidents").iterdir()) == []


def test_report_can_be_printed_and_the_log_piped_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "9")
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(LOG.encode())))
    assert main(["incident", "x", "--log", "-", "-o", "-"]) == 0
    assert "cannot start: the log is away" in capsys.readouterr().out


def test_nothing_secret_gets_into_a_report(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    hostile = [
        line(1, "ERROR", f"key {KEY} came, with Bearer canary.canary and https://user:canary@host/?sig=canary"),
        line(2, "ERROR", "```\n# not a heading\x1b[31m", exception="canary"),
        line(3, "ERROR", "x" * 10_000, request_id={"deep": KEY}),
        json.dumps({"level": "ERROR"}),
        "{" * 100_000,
    ]
    text = report(make_settings(), "\n".join(hostile))
    assert "canary" not in text
    assert "A" * 36 not in text
    assert "cnp_abcdefgh_***" in text
    assert "\n# not a heading" not in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 1000


@pytest.mark.parametrize(
    "body",
    ["", "[]", '{"alerts": 1}', '{"alerts": [1, {}], "objectives": [{"values": []}], "errors": 0}', "{" * 9999],
)
def test_odd_answers_make_no_odd_report(settings: Settings, body: str) -> None:
    answer = Answer(200, body)
    assert report(settings, answers={"/ready": answer, "/metrics": answer, "/ops/status": answer}).endswith("\n")


def test_service_is_asked_where_it_listens(
    shared_client: httpx2.Client, make_settings: Callable[..., Settings]
) -> None:
    ask = asked_of(make_settings(HOST="0.0.0.0", AUTH_MODE="none", PORT=str(shared_client.base_url.port)))
    assert ask("/health") == Answer(200, '{"status":"healthy"}')


def test_key_of_the_environment_opens_the_metrics_and_is_not_shown(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = open_server_service(make_settings(AUTH_MODE="keys"))
    key = asyncio.run(
        service.database.write(partial(create, name="on call", scopes=frozenset({Scope.OPS}), expires_at=None))
    )
    with serving(service) as client:
        monkeypatch.setenv("PORT", str(client.base_url.port))
        monkeypatch.setenv("AUTH_MODE", "keys")
        said = {}
        for given in ("", key, "no\nkey"):
            monkeypatch.setenv("API_KEY", given)
            assert main(["incident", "x", "-o", "-"]) == 0
            said[given] = capsys.readouterr().out
    assert "- `/metrics`: 401" in said[""]
    assert "- `/metrics`: 200" in said[key]
    assert key not in said[key]
    assert "- `/metrics`: is not asked: API_KEY is no key" in said["no\nkey"]
