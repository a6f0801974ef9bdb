import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.telemetry.cloudwatch import CloudWatchMetrics
from infra.telemetry.logs import configure_logging
from infra.telemetry.metrics import Metrics
from tests.log_lines import SCHEMA, fault_in


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    configure_logging("INFO")
    yield stream
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_line_is_json_whoever_wrote_it(stdout: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("started", extra={"color_message": "\x1b[36mstarted"})
    logging.getLogger("some.library").warning('quotes " and\nnewlines')
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("careful", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    found = lines(stdout)
    assert [line["level"] for line in found] == ["INFO", "WARNING", "WARNING"]
    assert all({"timestamp", "level", "message", "service"} <= line.keys() for line in found)
    assert "color_message" not in found[0]


def test_message_is_text_whatever_was_logged(stdout: io.StringIO) -> None:
    for message in ('{"a": 1}', "12", {"a": 1}, ("a", 1), ValueError("boom")):
        logging.getLogger("x").info(message)
    assert [line["message"] for line in lines(stdout)] == ['{"a": 1}', "12", "{'a': 1}", "('a', 1)", "boom"]


def test_who_looks_for_errors_does_not_find_what_the_server_says(stdout: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    assert lines(stdout)[0]["logger"] == "uvicorn"


def test_statements_with_their_values_are_not_logged_at_any_level(
    stdout: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)  # once more: pytest has its own by now
    configure_logging("DEBUG")
    logging.getLogger("x").debug("seen")
    logging.getLogger("peewee").debug(("SELECT ?", ["secret"]))
    assert [line["message"] for line in lines(stdout)] == ["seen"]


def test_page_has_the_fields_of_the_schema() -> None:
    page = (Path(__file__).parents[3] / "docs/logs.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(name, field["description"]) for name, field in SCHEMA["properties"].items()]


@pytest.mark.parametrize("extra", [{"unheard_of": 1}, {"status_code": "200"}, {"request_id": "a b"}, {"plan": "SCAN"}])
def test_line_that_is_not_as_described_is_noticed(stdout: io.StringIO, extra: dict[str, object]) -> None:
    logging.getLogger("x").warning("as described")
    (line,) = lines(stdout)
    assert fault_in(json.dumps(line)) is None
    assert fault_in(json.dumps(line | extra))


def test_exceptions_are_one_line_with_their_traceback(stdout: io.StringIO) -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("failed")
        sys.excepthook(*sys.exc_info())
    found = lines(stdout)
    assert [line["message"] for line in found] == ["failed", "uncaught ValueError"]
    for line in found:
        assert "Traceback" in str(line["exception"])
        assert line["exception_name"] == "ValueError"


def test_text_that_no_encoding_has_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    configure_logging("INFO")
    logging.captureWarnings(False)
    logging.getLogger("x").info("caf\u00e9 \ud800")
    sys.stdout.flush()
    assert "caf\u00e9 \\ud800" in written.getvalue().decode()


def test_own_request_lines_replace_those_of_the_servers(stdout: io.StringIO) -> None:
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("mangum.http").info("GET /")
    assert lines(stdout) == []


def test_prometheus_text_has_counters_and_gauges() -> None:
    metrics = Metrics()
    metrics.request_finished("GET", "/api/items", 200, 0.01)
    metrics.database_locked()
    for succeeded in (True, False):
        metrics.maintenance_finished(succeeded, 2.0)
    text = metrics.exposition(lambda: {"database_size_bytes": 7})[0].decode()
    assert 'http_requests_total{method="GET",route="/api/items",status="200"} 1.0' in text
    assert "database_locked_total 1.0" in text
    assert 'maintenance_runs_total{result="succeeded"} 1.0' in text
    assert 'maintenance_runs_total{result="failed"} 1.0' in text
    assert "maintenance_duration_seconds_sum 4.0" in text
    assert "database_size_bytes 7.0" in text


def test_cloudwatch_metrics_are_one_embedded_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = CloudWatchMetrics()
    metrics.request_finished("GET", "/api/items", 503, 0.01)
    metrics.database_locked()
    metrics.maintenance_finished(True, 2.0)
    metrics.flush()
    line = json.loads(capsys.readouterr().out)
    assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "cloud-native-poc"
    assert line["cold_starts_total"] == line["http_requests_total"] == line["database_locked_total"] == [1]
    assert (line["http_request_duration_seconds"], line["maintenance_duration_seconds"]) == ([0.01], [2])
    assert (line["status"], line["result"]) == ("5xx", "succeeded")
    metrics.flush()
    assert capsys.readouterr().out == ""
    assert b"database_size_bytes 7.0" in metrics.exposition(lambda: {"database_size_bytes": 7})[0]
