"""A real Prometheus and a real Alertmanager, with the project's own files, beside the real service."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.checkout import Checkout
from tests.e2e.conftest import Server
from tests.e2e.processes import ROOT, SHELL, StartProcess, free_port, until

MONITORING = ROOT / "infra" / "monitoring"
WITH_KEY = {r"#(authorization:|  credentials_file:)": r"\1"}

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        shutil.which("promtool") is None, reason="needs Debian's prometheus and prometheus-alertmanager"
    ),
]


def run(*command: object, text: str = "") -> str:
    """What the command prints; it must succeed."""
    result = subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def copied(directory: Path, edits: dict[str, str]) -> Path:
    """The files with some of their lines replaced."""
    for name in ("prometheus.yml", "alertmanager.yml", "rules/service.yml", "rules/objectives.yml"):
        text = (MONITORING / name).read_text()
        for pattern, replacement in edits.items():
            text = re.sub(pattern, replacement, text)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def test_files_are_what_the_programs_read(tmp_path: Path) -> None:
    files = copied(tmp_path / "monitoring", WITH_KEY)
    (files / "prometheus.key").write_text("a key")
    run("promtool", "check", "config", MONITORING / "prometheus.yml")
    run("promtool", "check", "config", files / "prometheus.yml")
    run("amtool", "check-config", MONITORING / "alertmanager.yml")
    for severity, receiver in (("P0", "page"), ("P1", "page"), ("P2", "ticket"), ("P3", "ticket")):
        found = run(
            "amtool", "config", "routes", "test", f"--config.file={MONITORING}/alertmanager.yml", f"severity={severity}"
        )
        assert found.split()[0] == receiver


def test_each_alert_fires_for_its_series_and_is_silent_for_another() -> None:
    run("promtool", "test", "rules", *sorted((MONITORING / "tests").glob("*.yml")))


def test_metrics_are_named_and_described_as_prometheus_would_have_them(start_server: Callable[..., Server]) -> None:
    server = start_server(MAINTENANCE_INTERVAL_SECONDS="0")
    server.client.post("/api/items", json={"name": "one"})
    assert run("promtool", "check", "metrics", text=server.client.get("/metrics").text) == ""


class Prometheus:
    """As `prometheus.yml` has it but for addresses and patience; with a key, if there is one."""

    def __init__(self, start: StartProcess, directory: Path, service: httpx2.URL, key: str = "") -> None:
        port, alertmanager_port = free_port(), free_port()
        files = copied(
            directory,
            {
                **(WITH_KEY if key else {}),
                r"(scrape|evaluation)_interval: 15s": r"\1_interval: 500ms",
                r"scrape_interval: 500ms": "scrape_interval: 500ms\n  scrape_timeout: 400ms",
                r"\bfor: \w+": "for: 1s",
                r"group_wait: \w+": "group_wait: 1s",
                "alertmanager:9093": f"127.0.0.1:{alertmanager_port}",
                "app:8000": service.netloc.decode(),
            },
        )
        (files / "prometheus.key").write_text(key)
        start(
            "prometheus-alertmanager",
            f"--config.file={files}/alertmanager.yml",
            f"--storage.path={files}/alerts",
            f"--web.listen-address=127.0.0.1:{alertmanager_port}",
            "--cluster.listen-address=",
        )
        self.process = start(
            "prometheus",
            f"--config.file={files}/prometheus.yml",
            f"--storage.tsdb.path={files}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        self._client = httpx2.Client(base_url=f"http://127.0.0.1:{port}/api/v1/", timeout=5, trust_env=False)
        self._alertmanager = httpx2.Client(
            base_url=f"http://127.0.0.1:{alertmanager_port}/api/v2/", timeout=5, trust_env=False
        )

    def ask(self, path: str) -> dict[str, Any]:
        with suppress(httpx2.HTTPError, ValueError):
            return dict(self._client.get(path).json()["data"])
        return {}

    def value(self, expression: str) -> float | None:
        """Of the only series, if there is one."""
        with suppress(httpx2.HTTPError, ValueError):
            found = self._client.get("query", params={"query": expression}).json()["data"]["result"]
            return float(found[0]["value"][1]) if found else None
        return None

    def firing(self) -> dict[str, dict[str, Any]]:
        alerts = self.ask("alerts").get("alerts", [])
        return {alert["labels"]["alertname"]: alert for alert in alerts if alert["state"] == "firing"}

    def told(self) -> dict[str, list[str]]:
        """Which receivers Alertmanager tells of which alert."""
        with suppress(httpx2.HTTPError, ValueError):
            alerts = self._alertmanager.get("alerts").json()
            return {found["labels"]["alertname"]: [to["name"] for to in found["receivers"]] for found in alerts}
        return {}

    def close(self) -> None:
        self._client.close()
        self._alertmanager.close()


def test_locked_database_lost_store_and_killed_service_make_their_alerts_fire(
    start_process: StartProcess, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server(BUSY_TIMEOUT_SECONDS="0.2", MAINTENANCE_INTERVAL_SECONDS="0")
    data = tmp_path / "data"
    with closing(Prometheus(start_process, tmp_path / "monitoring", server.client.base_url)) as prometheus:
        until(lambda: prometheus.value("database_locked_total") == 0)
        until(lambda: not prometheus.firing())

        with subprocess.Popen([SHELL, data / "app.db"], stdin=subprocess.PIPE, text=True) as shell:
            assert shell.stdin
            shell.stdin.write(".timeout 20000\nBEGIN IMMEDIATE;\n")
            shell.stdin.flush()
            until(lambda: server.client.post("/api/items", json={"name": "x"}).status_code == 503)
            until(lambda: "DatabaseLocked" in prometheus.firing())
            shell.kill()
        assert prometheus.firing()["DatabaseLocked"]["labels"]["severity"] == "P2"

        (data / "replica").rename(data / "elsewhere")
        until(lambda: server.client.get("/ready").status_code == 200 and "StoreAway" in prometheus.firing())
        (data / "elsewhere").rename(data / "replica")

        server.process.end(signal.SIGKILL)
        until(lambda: "ServiceDown" in prometheus.firing())
        alert = prometheus.firing()["ServiceDown"]
        assert alert["labels"]["severity"] == "P0"
        repository = re.search(r"repository: (\S+)", (MONITORING / "prometheus.yml").read_text())
        assert repository
        assert alert["annotations"]["runbook_url"] == f"{repository[1]}/RUNBOOK.md#alert-servicedown"
        told = {"ServiceDown": ["page"], "StoreAway": ["page"], "DatabaseLocked": ["ticket"]}
        until(lambda: prometheus.told().items() >= told.items())


def test_service_that_asks_for_a_key_is_scraped_with_one(
    start_process: StartProcess, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server(AUTH_MODE="keys")
    made = start_process(sys.executable, "-m", "infra", "keys", "create", "prometheus", "--scope", "ops")
    key = made.wait_for(r"^\S{20,}$")[0]
    assert server.client.get("/metrics").status_code == 401
    with closing(Prometheus(start_process, tmp_path / "monitoring", server.client.base_url, key)) as prometheus:
        until(lambda: prometheus.value("up") == 1)


def test_compose_starts_them_beside_the_service(checkout: Checkout) -> None:
    """But for Grafana, whose image is not the project's."""
    checkout.begin_anew()
    ports = {"PROMETHEUS_PORT": str(free_port()), "ALERTMANAGER_PORT": str(free_port())}
    checkout.sh("docker compose --profile observability up -d --build --wait prometheus alertmanager", **ports)

    def asked(question: str) -> Any:
        with suppress(httpx2.HTTPError, ValueError):
            found = httpx2.get(f"http://localhost:{ports['PROMETHEUS_PORT']}/api/v1/{question}", trust_env=False)
            return found.json()["data"]
        return None

    until(lambda: [target["health"] for target in (asked("targets") or {}).get("activeTargets", ())] == ["up"], 60)
    assert [manager["url"] for manager in asked("alertmanagers")["activeAlertmanagers"]] == [
        "http://alertmanager:9093/api/v2/alerts"
    ]
    assert {rule["name"] for group in asked("rules")["groups"] for rule in group["rules"]} > {"ServiceDown"}
    checkout.sh("make stop")
    assert checkout.sh("docker compose --profile observability ps --all --quiet") == ""
