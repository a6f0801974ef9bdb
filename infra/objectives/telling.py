"""The answer of /ops/status out of what was judged, and found in the stores."""

import os
import socket
from collections.abc import Mapping

from infra.objectives.judgement import Judgement
from infra.objectives.recent import last_of
from infra.objectives.status import (
    AlertView,
    BackupView,
    CommitView,
    ErrorView,
    LogView,
    ServiceView,
    StatusView,
    moment_text,
)
from infra.objectives.stores import Found
from infra.settings import SERVICE
from infra.storage.url import redacted
from infra.telemetry.build import build
from infra.telemetry.newest_errors import ERRORS


def tell(
    judgement: Judgement,
    found: Found,
    *,
    writes: Mapping[int, int],
    shown_gauges: Mapping[str, float],
    replica_url: str | None,
    started: float,
    per_instance: bool,
    not_asked: list[str],
) -> StatusView:
    """Say how the service is. `writes`: that share a commit, by TXID. `replica_url`: None where no log
    of ours is. `started`: this process, seconds since 1970.
    """
    facts = judgement.facts
    return StatusView(
        state=judgement.state,
        reason=judgement.reason,
        since=moment_text(facts.history.noted.since),
        service=_service(started, per_instance),
        objectives=judgement.objectives,
        alerts=alerts_of(judgement),
        log=None if replica_url is None else _log(found, writes, facts.gauges, replica_url),
        backups=_backups(found, facts.now),
        errors=_errors(),
        gauges=dict(shown_gauges),
        not_asked=not_asked,
    )


def alerts_of(judgement: Judgement) -> list[AlertView]:
    """Those that fire, the worst first."""
    facts = judgement.facts
    return [
        AlertView(
            name=alert.name,
            severity=alert.severity,
            summary=says,
            since=moment_text(facts.history.noted.firing.get(alert.name, facts.now)),
            last=last_of(alert.name, facts),
            runbook=alert.runbook,
        )
        for alert, says in judgement.alerts
    ]


def _service(started: float, per_instance: bool) -> ServiceView:
    return ServiceView(
        name=SERVICE,
        version=build()["version"],
        revision=None if build()["revision"] == "unknown" else build()["revision"],
        started_at=moment_text(started),
        instance=os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME") or f"{socket.gethostname()}:{os.getpid()}",
        per_instance=per_instance,
    )


def _log(found: Found, writes: Mapping[int, int], gauges: Mapping[str, float], replica_url: str) -> LogView:
    txid = int(gauges.get("commit_log_txid", 0))
    head = max((commit.max_txid for commit in found.commits), default=0)
    return LogView(
        url=redacted(replica_url),
        txid=f"{txid:016x}",
        commits=[
            CommitView(
                txid=f"{commit.max_txid:016x}",
                at=moment_text(commit.modified.timestamp()),
                bytes=commit.size,
                writes=writes.get(commit.max_txid),
            )
            for commit in found.commits
        ],
        lag=int(gauges.get("commit_log_lag_commits", max(0, head - txid))),
        since_compaction=_whole(gauges.get("commit_log_commits_since_compaction")),
        since_snapshot=_whole(gauges.get("commit_log_commits_since_snapshot")),
    )


def _backups(found: Found, now: float) -> list[BackupView]:
    verified = found.report.verified
    return [
        BackupView(
            name=backup.name,
            at=moment_text(backup.time.timestamp()),
            age_seconds=max(0.0, now - backup.time.timestamp()),
            bytes=backup.size,
            proven_at=moment_text(verified.at) if verified and verified.backup == backup.name else None,
        )
        for backup in found.backups
    ]


def _errors() -> list[ErrorView]:
    return [
        ErrorView(
            at=moment_text(error.at),
            level=error.level,
            message=error.message,
            logger=error.logger,
            request_id=error.request_id,
            count=error.count,
        )
        for error in ERRORS.newest_first()
    ]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
