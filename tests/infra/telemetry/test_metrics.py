"""What is counted is in the table, on the page, on /metrics and in CloudWatch's line, under one name."""

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import httpx2
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from core import __version__
from handler.asgi import ROUTES
from handler.service import Service, open_server_service
from infra.__main__ import main
from infra.clock import Clock
from infra.commitlog import open_log
from infra.maintenance.drill import run_drill
from infra.objectives.stores import stores_of
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase
from infra.storage.object_store import ObjectStore
from infra.telemetry import event_loop
from infra.telemetry.build import build
from infra.telemetry.catalogue import BY_NAME, METRICS, Metric
from infra.telemetry.cloudwatch import CloudWatchMetrics
from infra.telemetry.log_lines import LogLines
from infra.telemetry.metrics import Metrics, Totals
from tests.conftest import MakeSettings, serving, settings_in

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """One that has seen all there is: a drill, a run of maintenance, the backup of which it has proven."""
    service = open_server_service(settings_in(tmp_path_factory.mktemp("metrics")))
    assert service.maintenance
    service.maintenance.run()
    url = service.settings.replica_url
    run_drill(open_log(url, Clock()), ObjectStore(url), service.maintenance._maintenance.backups)
    service.maintenance.run()
    return service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx2.Client]:
    with serving(service) as client:
        for _ in range(1000):  # until the event loop has been looked at
            if "event_loop_delay_seconds" in service.metrics.gauges():
                break
            time.sleep(0.01)
        yield client


def families(client: httpx2.Client) -> dict[str, Family]:
    """By the name that the table has."""
    found = text_string_to_metric_families(client.get("/metrics").text)
    return {family.name + "_total" * (family.type == "counter"): family for family in found}


def value(client: httpx2.Client, name: str, **labels: str) -> float:
    family = families(client)[re.sub(r"_(count|sum)$", "", name)]
    return sum(s.value for s in family.samples if s.name == name and labels.items() <= s.labels.items())


def row(metric: Metric) -> str:
    listed = [f"`{name}`: {', '.join(values)}" if values else f"`{name}`" for name, values in metric.labels.items()]
    printed = f"yes, by `{metric.dimension}`" if metric.dimension else "yes" if metric.on_lambda else "no"
    cells = (
        f"`{metric.name}`",
        metric.help,
        metric.kind,
        "; ".join(listed),
        "log" if metric.is_shared else "process",
        printed,
    )
    return f"| {' | '.join(cells)} |"


def test_page_has_a_row_for_each_metric() -> None:
    assert re.findall(r"^\| `.*", PAGE.read_text(), re.MULTILINE) == [row(metric) for metric in METRICS]


def test_server_shows_what_the_table_says_and_nothing_else(client: httpx2.Client) -> None:
    client.post("/api/items", json={"name": "x"})
    client.get("/metrics")
    shown = {name: family for name, family in families(client).items() if not name.startswith("process_")}
    assert list(shown) == list(BY_NAME)
    for name, family in shown.items():
        metric = BY_NAME[name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == metric.labels.keys(), name
    unseen = {name for name, family in shown.items() if not family.samples}
    assert unseen == {"callers_refused_total", "cold_starts_total"}


def test_what_is_not_known_is_left_out() -> None:
    shown = Metrics().exposition(dict)[0].decode()
    gauges = {metric.name for metric in METRICS if metric.kind == "gauge"}
    assert set(re.findall(r"^# TYPE (\w+) gauge", shown, re.MULTILINE)) & gauges == {"build_info"}


def test_no_caller_can_invent_a_label(client: httpx2.Client) -> None:
    for odd in ("PROPFIND", "get", "X" * 100):
        client.request(odd, "/api/items")
    for path in ("/nowhere", "/api/items/17", "/api/items/18", "/%22%7D%0A", "/docs/x.js"):
        client.get(path, headers={"x-request-id": "abc", "user-agent": "odd"})
    routes = {route.path for route in ROUTES} | {"none"}
    for name, family in families(client).items():
        for sample in family.samples:
            for label, found in sample.labels.items():
                allowed = BY_NAME[name].labels.get(label, ()) if name in BY_NAME else ()
                assert not allowed or found in allowed
                assert label != "route" or found in routes
                assert label != "status" or re.fullmatch("[1-5][0-9]{2}", found)


def test_totals_are_of_the_api_alone(client: httpx2.Client, service: Service) -> None:
    before = service.metrics.totals()
    for path in ("/health", "/ready", "/metrics", "/docs", "/openapi.json", "/dashboard", "/ops/status"):
        client.get(path)
    assert service.metrics.totals() == before
    client.get("/api/items")
    client.get("/nowhere")
    client.post("/api/items", json={"name": "x"})
    client.get("/health")  # on the same connection, so the ones before are counted by now
    after = service.metrics.totals()
    assert (after.requests - before.requests, after.errors - before.errors) == (3, 0)
    assert sum(after.durations) - sum(before.durations) == 3
    assert sum(after.queries) - sum(before.queries) == 2
    assert after.commits == before.commits + 1


def test_totals_count_errors_and_put_each_time_into_one_bucket() -> None:
    metrics = Metrics()
    assert metrics.totals() == Totals()
    for status, seconds in ((200, 0.001), (503, 0.3), (200, 60.0)):
        metrics.request_finished("GET", "/api/items", status, seconds)
    metrics.request_finished("GET", "/metrics", 500, 0.3)
    totals = metrics.totals()
    assert (totals.requests, totals.errors) == (3, 1)
    assert totals.durations == (1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)


def test_times_are_told_apart_by_where_they_were_spent(client: httpx2.Client) -> None:
    names = ("database_queue_duration_seconds_count", "commit_log_commit_duration_seconds_count")
    before = [value(client, name) for name in names]
    reads, writes = (value(client, "database_query_duration_seconds_count", kind=kind) for kind in ("read", "write"))
    puts = value(client, "store_request_duration_seconds_count", store="log", verb="put", result="ok")
    size = value(client, "commit_log_written_bytes_total")
    client.post("/api/items", json={"name": "x"})
    client.get("/api/items")
    client.get("/ready")  # which asks the database, too: of no interest here
    assert [value(client, name) for name in names] == [count + 1 for count in before]
    assert value(client, "database_query_duration_seconds_count", kind="read") == reads + 1
    assert value(client, "database_query_duration_seconds_count", kind="write") == writes + 1
    assert value(client, "store_request_duration_seconds_count", store="log", verb="put", result="ok") == puts + 1
    assert value(client, "store_request_duration_seconds_count", store="backups", verb="put") > 0
    assert value(client, "commit_log_written_bytes_total") > size


def test_lock_of_another_connection_is_met_and_waited_for(client: httpx2.Client, service: Service) -> None:
    met = value(client, "database_busy_total")
    waits = value(client, "database_lock_wait_duration_seconds_count")
    with closing(apsw.Connection(str(service.settings.database_path))) as other:
        other.execute("BEGIN IMMEDIATE")
        assert client.post("/api/items", json={"name": "x"}).status_code == 503
    assert value(client, "database_busy_total") > met
    assert value(client, "database_lock_wait_duration_seconds_count") > waits
    assert value(client, "database_lock_wait_duration_seconds_sum") >= service.settings.busy_timeout_seconds
    assert value(client, "database_locked_total") == 1


def test_request_that_asks_is_in_flight(client: httpx2.Client) -> None:
    assert value(client, "http_requests_in_flight") == 1
    client.get("/nowhere")
    assert value(client, "http_requests_in_flight") == 1


def test_commits_that_are_known_and_not_shown_are_the_lag(client: httpx2.Client, service: Service) -> None:
    assert value(client, "commit_log_lag_commits") == 0
    assert isinstance(service.database, SqliteDatabase)
    head = service.database.log.head
    head.remember(0.0, head.known_end + 3)
    assert value(client, "commit_log_lag_commits") == 3
    client.post("/api/items", json={"name": "x"})
    assert value(client, "commit_log_lag_commits") == 0


def test_gauges_of_the_volume_are_those_of_the_system(client: httpx2.Client) -> None:
    assert 0 < value(client, "data_volume_free_bytes") < value(client, "data_volume_size_bytes")


def test_volume_is_as_full_as_df_says_it_is(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 blocks 60 are free, and 10 of these are for anybody: 40 of 50 are in use."""
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 100, 60, 10, 0, 0, 0, 0, 255)))
    assert (value(client, "data_volume_free_bytes"), value(client, "data_volume_size_bytes")) == (10, 50)


def test_drill_is_shown_as_it_was_kept(client: httpx2.Client, service: Service) -> None:
    assert service.maintenance
    drill = service.maintenance._maintenance.last_drill()
    assert drill
    assert value(client, "restore_drill_duration_seconds") == drill.duration_seconds
    assert value(client, "restore_drill_last_success_timestamp_seconds") == drill.at


def test_server_whose_maintenance_another_process_does_shows_what_it_finds(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown() -> dict[str, float]:
        return {name: family.samples[0].value for name, family in families(client).items() if name in shared}

    shared = {metric.name for metric in METRICS if metric.is_shared}
    service = open_server_service(settings)
    stores = service.watch.stores
    with serving(service) as client:
        until = time.monotonic() + 20
        while not shown():
            assert time.monotonic() < until
        monkeypatch.setenv("DATABASE_PATH", str(settings.database_path))
        assert main(["maintain"]) == main(["drill"]) == 0
        assert shown().keys() == {"restore_drill_due_timestamp_seconds"}, "nobody asks the stores for whoever scrapes"
        stores._asked = float("-inf")  # as a minute later
        assert stores.ask(seldom=True).wait(20)
        found = shown()
    assert found.keys() == shared - {"commit_log_commits_since_compaction"}
    assert found["maintenance_last_success_timestamp_seconds"] > time.time() - 60
    assert found["backup_lag_seconds"] == found["commit_log_unsound"] == 0


def test_bucket_is_asked_seldom_and_oftener_by_a_server_without_a_timer(make_settings: MakeSettings) -> None:
    def seldom(**environment: str) -> float:
        return stores_of(make_settings(**environment), lambda: 0)._seldom

    bucket = {"REPLICA_URL": "s3://bucket/x", "BACKUP_URL": "s3://bucket/y"}
    assert seldom() == 60
    assert seldom(**bucket) == 300
    assert seldom(**bucket, MAINTENANCE_INTERVAL_SECONDS="3600") == 3600


def test_lines_of_the_log_are_counted_from_warning_on_while_the_server_runs(client: httpx2.Client) -> None:
    levels = BY_NAME["log_lines_total"].labels["level"]
    before = {level: value(client, "log_lines_total", level=level) for level in levels}
    logger = logging.getLogger("anybody")
    for level in (logging.INFO, logging.WARNING, logging.ERROR, logging.ERROR, logging.CRITICAL):
        logger.log(level, "x")
    after = {level: value(client, "log_lines_total", level=level) for level in levels}
    assert after == {level: before[level] + n for level, n in {"WARNING": 1, "ERROR": 2, "CRITICAL": 1}.items()}


def test_lines_are_counted_no_more_after_the_end() -> None:
    metrics = Metrics()
    LogLines(metrics).start().stop()
    logging.getLogger("anybody").error("x")
    assert 'log_lines_total{level="ERROR"} 0.0' in metrics.exposition(dict)[0].decode()


def test_event_loop_that_was_held_up_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop, "_INTERVAL_SECONDS", 0.001)
    metrics = Metrics()

    async def hold_up() -> None:
        watching = asyncio.create_task(event_loop.watch_event_loop(metrics.loop_delayed))
        await asyncio.sleep(0)
        time.sleep(0.05)  # noqa: ASYNC251
        while "event_loop_delay_seconds" not in metrics.gauges():
            await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(hold_up())
    for _ in range(60):
        metrics.loop_delayed(0.0)
    assert metrics.gauges()["event_loop_delay_seconds"] > 0.04  # of the last minute, whoever asks meanwhile
    for _ in range(60):
        metrics.loop_delayed(0.0)
    assert metrics.gauges()["event_loop_delay_seconds"] == 0


def test_build_is_that_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVISION", "abc123")
    build.cache_clear()
    assert 'revision="abc123"' in Metrics().exposition(dict)[0].decode()
    build.cache_clear()


def test_function_prints_the_same_facts_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = CloudWatchMetrics()
    metrics.request_finished("GET", "/api/items", 200, 0.01)
    for _ in range(250):
        metrics.log_asked("get", True, 0.002)
    metrics.log_asked("put", False, 3.0)
    metrics.commit_stored(1500, 0.02)
    metrics.flush(lambda: {"database_size_bytes": 4096, "http_requests_in_flight": 1, "of somebody else": 1})
    [text] = capsys.readouterr().out.splitlines()
    line = json.loads(text)
    plain, *by = line["_aws"]["CloudWatchMetrics"]
    assert plain["Dimensions"] == [["service"]]
    printed = {metric["Name"]: metric["Unit"] for metric in plain["Metrics"]}
    assert printed == {
        "http_requests_total": "Count",
        "http_request_duration_seconds": "Seconds",
        "commit_log_commits_total": "Count",
        "commit_log_commit_duration_seconds": "Seconds",
        "commit_log_written_bytes_total": "Bytes",
        "store_request_duration_seconds": "Seconds",
        "cold_starts_total": "Count",
        "database_size_bytes": "Bytes",
    }
    assert [(each["Dimensions"], each["Metrics"]) for each in by] == [
        ([["service", "status"]], [{"Name": "http_requests_total", "Unit": "Count"}])
    ]
    assert (line["status"], line["commit_log_written_bytes_total"]) == ("2xx", [1500])
    assert (line["database_size_bytes"], line["version"]) == ([4096], __version__)
    assert 50 < len(line["store_request_duration_seconds"]) <= 100
    assert line["series"]['store_request_duration_seconds{store="log",verb="get",result="ok"}'] == 250
    assert line["series"]['store_request_duration_seconds{store="log",verb="put",result="failed"}'] == 1
    metrics.commit_conflicted()
    metrics.flush()
    line = json.loads(capsys.readouterr().out)
    assert line["commit_log_conflicts_total"] == [1]
    assert "commit_log_commits_total" not in line


def test_function_prints_every_metric_that_the_table_says_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = CloudWatchMetrics()
    for metric in METRICS:
        labels = [values[0] if values else "200" for values in metric.labels.values()]
        if metric.kind == "counter":
            metrics.counter(metric, *labels).add()
        elif metric.kind == "histogram":
            metrics.histogram(metric, *labels).observe(1)
    metrics.flush(lambda: {metric.name: 1 for metric in METRICS if metric.kind == "gauge"})
    line = json.loads(capsys.readouterr().out)
    assert set(line) & set(BY_NAME) == {metric.name for metric in METRICS if metric.on_lambda}
