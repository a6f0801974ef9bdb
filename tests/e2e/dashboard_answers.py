"""Answers of /ops/status and /ops/history that have everything in them: what is not known, is broken, is odd."""

from datetime import UTC, datetime, timedelta
from typing import Any

_NOW = datetime.now(UTC).replace(microsecond=0)
_SERIES = (
    ("requests_per_second", 12.25),
    ("errors_per_second", 0.5),
    ("p50_seconds", 0.0021),
    ("p95_seconds", 0.0123),
    ("p99_seconds", 0.5),
    ("commits", 97),
    ("conflicts", 1),
    ("memory_bytes", 98_400_000),
    ("database_bytes", 1_731_584),
    ("wal_bytes", 412_032),
)


def before(seconds: float) -> str:
    return (_NOW - timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def status_answer(odd: str = "") -> dict[str, Any]:
    """`odd`: stands in each text."""
    return {
        "state": "degraded",
        "reason": f"StoreAway: the store does not answer {odd}",
        "since": before(190),
        "service": {
            "name": "cloud-native-poc",
            "version": "0.2.0",
            "revision": f"3f9c2ab {odd}".strip(),
            "started_at": before(300_000),
            "instance": f"i-1 {odd}".strip(),
            "per_instance": True,
        },
        "objectives": [
            _objective(f"Availability {odd}", "ratio", [0.912, 0.96, 0.9999999, None], -0.31, "broken", odd),
            _objective("Response time, p95", "seconds", [0.00431, 0.5, 65.0, 7200.0], None, "at_risk", odd),
            _objective("Restarts", "per_day", [0, 0, 1, 0.2], 0.8, "met", odd),
            _objective("Restore", "seconds", [None, None, None, None], None, "unknown", odd),
        ],
        "alerts": [
            {
                "name": f"StoreAway {odd}".strip(),
                "severity": "P1",
                "summary": f"The store has not answered for 3 minutes {odd}",
                "since": before(190),
                "last": {"what": f"refused write {odd}".strip(), "at": before(120), "until": before(-240)},
                "runbook": "RUNBOOK.md#alert-storeaway",
            },
            {
                "name": "DrillOld",
                "severity": "P3",
                "summary": "No restore drill in 45 days",
                "since": before(300_000),
                "last": None,
                "runbook": "RUNBOOK.md#alert-drillold",
            },
        ],
        "log": {
            "url": f"s3://bucket/log {odd}".strip(),
            "txid": "00000000000034f1",
            "commits": [
                {"txid": f"{0x34F1 - n:016x}", "at": before(8 + 40 * n), "bytes": 412 + 977 * n, "writes": n or None}
                for n in range(20)
            ],
            "lag": 1,
            "since_compaction": 181,
            "since_snapshot": None,
        },
        "backups": [
            {
                "name": f"app-20261126-110{n}.db.gz{odd}",
                "at": before(2300 + 3600 * n),
                "age_seconds": 2300 + 3600 * n,
                "bytes": 48_211 + n,
                "proven_at": before(2200) if n == 0 else None,
            }
            for n in range(3)
        ],
        "errors": [
            {
                "at": before(20),
                "level": "ERROR",
                "message": f"PUT failed\nof the newest commit {odd}",
                "logger": f"infra.commitlog {odd}".strip(),
                "request_id": f"0f2b1c77-6a1e-4b5b-9f9b-fd3d0f1f2a55 {odd}".strip(),
                "count": 1203,
            },
            {
                "at": before(99),
                "level": "CRITICAL",
                "message": "x" * 300,
                "logger": "infra",
                "request_id": None,
                "count": 1,
            },
        ],
        "gauges": {
            "http_requests_in_flight": 2.0,
            "event_loop_delay_seconds": 0.0021,
            "data_volume_free_bytes": 48_300_000_000.0,
            "database_size_bytes": 1_731_584.0,
            "database_wal_size_bytes": 412_032.0,
            "backup_newest_timestamp_seconds": _NOW.timestamp() - 2300,
            f"odd{odd}": 1.5,
        },
        "not_asked": [f"backups {odd}"],
    }


def history_answer(span: str = "hour", points: int | None = None) -> dict[str, Any]:
    step, number = (60, 60) if span == "hour" else (600, 144)
    known = [
        {
            "at": before(step * n),
            **{name: None if n in (3, 4) else value * (1 + n % 7) for name, value in _SERIES},
        }
        for n in reversed(range(points or number))
    ]
    return {"span": span, "step_seconds": step, "points": known}


def _objective(
    title: str, unit: str, values: list[float | None], left: float | None, state: str, odd: str
) -> dict[str, Any]:
    return {
        "name": title.split()[0].lower(),
        "title": title,
        "target": f"≥ 1 {odd}".strip(),
        "unit": unit,
        "values": dict(zip(("5m", "1h", "24h", "30d"), values, strict=True)),
        "budget_left": left,
        "state": state,
        "reason": f"it is {state} {odd}".strip(),
        "per_instance": state == "met",
    }
