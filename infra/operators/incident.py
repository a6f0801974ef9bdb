"""The report of an incident: whatever can be known by a machine is filled in, also of a service that is down."""

import http.client
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any, BinaryIO

from core import __version__
from core.api_keys import FORM
from core.errors import ServiceError, SettingsError
from infra.backups.backups import open_backups
from infra.clock import Clock
from infra.commitlog import open_log
from infra.maintenance.drill import read_drill
from infra.maintenance.report import read_report
from infra.operators.status import check_log_is_there, read_status
from infra.settings import SERVICE, Settings
from infra.storage.object_store import ObjectStore
from infra.storage.url import redacted

SEVERITIES = ("P0", "P1", "P2", "P3")

_ANSWER_SECONDS = 3.0
_MOST_OF_ANSWER = 4 * 1024 * 1024  # bytes
_MOST_OF_LINE = 1024 * 1024  # bytes; a longer one is none of the service's, and taken to pieces
_MOST_EVENTS = 20
_LONGEST = 300  # characters of a message
_STARTED = re.compile(rf"{SERVICE} \S+ serves ")
_SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)", re.ASCII)
_CREDENTIALS = re.compile(r"(?i)\b(bearer|basic)\s+\S+")

_TEMPLATE = Template("""\
# Application Incident Report: $title

**Date:** $date
**Severity:** $severity
**Duration:** $duration
**Component:** $component
**Release:** $release
**Lost writes:** none / from ... to ...

## Timeline

UTC; noticed by whom, or by which alert?

$timeline

## Root Cause

What was it, and what helped?

## Action Items

- [ ] what, who, by when

## Facts

Gathered at $gathered.

$facts
""")


@dataclass(slots=True)
class LogFacts:
    """What the service's own lines tell of the time before."""

    starts: list[str] = field(default_factory=list)  # times
    errors: list[dict[str, str]] = field(default_factory=list)  # the newest last
    events: list[tuple[str, str]] = field(default_factory=list)  # time and what, each message once
    is_given: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said when it was asked."""

    status: int  # 0: none
    body: str  # or why there is none


Ask = Callable[[str], Answer]


def asked_of(settings: Settings, key: str = "") -> Ask:
    """How to ask the service of these settings, on this machine. `key`: with the scope `ops`, where it wants one."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "localhost") else settings.host  # noqa: S104 (compared)

    def ask(path: str) -> Answer:
        # not urllib, which would ask a proxy that the environment names
        connection = http.client.HTTPConnection(host, settings.port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(_MOST_OF_ANSWER).decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, f"does not answer: {error or type(error).__name__}")
        except ValueError:  # which would say what the key is
            return Answer(0, "is not asked: API_KEY is no key")
        finally:
            connection.close()

    return ask


def read_log(file: BinaryIO) -> LogFacts:
    """Find starts and errors in the service's lines; what is no JSON object is passed over."""
    lines = iter(lambda: file.readline(_MOST_OF_LINE), b"")
    found, counts = LogFacts(is_given=True), Counter[str]()
    first: dict[str, str] = {}
    for line in filter(None, map(_record, lines)):
        at, message = _text(line.get("timestamp"), 35), _text(line.get("message"))
        if _STARTED.match(message):
            found.starts.append(at)
            found.events.append((at, message))
        elif line.get("level") in ("ERROR", "CRITICAL"):
            error = {name: _text(line.get(name), 128) for name in ("level", "code", "request_id")}
            found.errors = [*found.errors[1 - _MOST_EVENTS :], {"at": at, "message": message, **error}]
            counts[message] += 1
            first.setdefault(message, at)
    times = {message: f" ({count} times from here on)" for message, count in counts.items() if count > 1}
    found.events += [(at, message + times.get(message, "")) for message, at in first.items()]
    found.events.sort()
    return found


def incident_report(settings: Settings, title: str, severity: str | None, log: LogFacts, ask: Ask) -> str:
    """Fill in the template. What cannot be asked is said in its place; nothing is raised for it."""
    now = datetime.now(UTC)
    ready, metrics, status = (ask(path) for path in ("/ready", "/metrics", "/ops/status"))
    told = _members(status) or _kept(settings)
    alerts = _records(told.get("alerts"))
    samples = list(_samples(metrics))
    worst = min((str(alert.get("severity")) for alert in alerts), default="P0 / P1 / P2 / P3")
    return _TEMPLATE.substitute(
        title=_text(title),
        date=now.strftime("%Y-%m-%d %H:%M UTC"),
        severity=severity or worst,
        duration=_duration(log),
        component=SERVICE,
        release=_release(samples),
        timeline="\n".join(f"- {at}: {what}" for at, what in _timeline(log, alerts, now)),
        gathered=_moment(now.timestamp()),
        facts="\n".join(_facts(settings, log, told, samples, {"/ready": ready, "/metrics": metrics}, status)),
    )


def write_report_file(directory: Path, text: str) -> Path:
    """Write a new file named after this minute, never over one that is there. Raises SettingsError."""
    stem = f"incident-{datetime.now(UTC):%Y%m%d-%H%M}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = directory / (f"{stem}.md" if number == 1 else f"{stem}-{number}.md")
            try:
                with path.open("x", encoding="utf-8") as file, _whole_or_gone(path):
                    file.write(text)
                    file.flush()
                return path
            except FileExistsError:
                if not path.exists():  # the directory is none
                    raise
    except OSError as error:
        why = error.strerror
        raise SettingsError(f"{directory} cannot be written: {why}; -o names another, -o - prints") from error
    raise SettingsError(f"{directory} has a thousand reports of this minute")


@contextmanager
def _whole_or_gone(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        path.unlink()
        raise


def _facts(
    settings: Settings,
    log: LogFacts,
    told: dict[str, Any],
    samples: list[tuple[str, str, float]],
    answers: dict[str, Answer],
    status: Answer,
) -> Iterator[str]:
    yield from (f"- `{path}`: {_of(answer)}" for path, answer in answers.items())
    if told:
        yield f"- state: {_text(told.get('state'))}, since {_text(told.get('since'))}: {_text(told.get('reason'))}"
    elif status.status != 404:
        yield f"- `/ops/status`: {_of(status)}"
    starts = ", ".join(log.starts[-_MOST_EVENTS:]) or "none" if log.is_given else "not looked at (`--log`)"
    yield f"- starts in the log: {starts}"
    if begun := next((value for name, _, value in samples if name == "process_start_time_seconds"), None):
        yield f"- runs since {_moment(begun)}"
    yield from _stored_facts(settings)
    if alerts := _records(told.get("alerts")):
        yield from _titled("Alerts", (" · ".join(_values(alert)) for alert in alerts))
    if objectives := _records(told.get("objectives")):
        yield from _titled("Objectives", map(_objective, objectives))
    errors = log.errors or _records(told.get("errors"))[:_MOST_EVENTS]
    if errors or log.is_given:
        yield from _titled("Last errors", (" · ".join(_values(error)) for error in errors))
    if samples:
        yield from _titled("Metrics", _shown(samples))


def _kept(settings: Settings) -> dict[str, Any]:
    """How the service is by the history beside its database, when it does not say so itself."""
    if settings.database_url:
        return {}
    try:
        return asdict(read_status(settings))
    except ServiceError:
        return {}


def _stored_facts(settings: Settings) -> Iterator[str]:
    """What log and backups say for themselves, whether or not the service runs."""
    if settings.database_url:
        yield f"- database: PostgreSQL, {settings.database}; its own tools know its log and its backups"
        return
    yield f"- commit log {redacted(settings.replica_url) or 'none'}: {_told(lambda: _log_fact(settings))}"
    yield f"- backups {redacted(settings.backup_url)}: newest {_told(lambda: _backup_fact(settings))}"
    yield f"- maintenance: {_told(lambda: _maintenance_fact(settings))}"
    yield f"- restore drill: {_told(lambda: _drill_fact(settings))}"


def _told(fact: Callable[[], str]) -> str:
    try:
        return fact()
    except ServiceError as error:
        return f"cannot be told: {_text(str(error))}"


def _log_fact(settings: Settings) -> str:
    if settings.replica_url:
        check_log_is_there(settings)
    found = open_log(settings.replica_url, Clock()).objects.everything() if settings.replica_url else []
    if not found:
        return "is empty"
    newest = max(found, key=lambda item: item.max_txid)
    return f"TXID {newest.max_txid:016x}, stored at {_moment(newest.modified.timestamp())}"


def _backup_fact(settings: Settings) -> str:
    newest = open_backups(settings).newest()
    return f"{newest.name}, {newest.size:,} bytes" if newest else "there is none"


def _maintenance_fact(settings: Settings) -> str:
    report = read_report(ObjectStore(settings.replica_url))
    success = f"last succeeded at {_moment(report.last_success)}" if report.last_success else "has never succeeded"
    return "; problem: ".join([success, *map(_text, report.problems)])


def _drill_fact(settings: Settings) -> str:
    drill = read_drill(ObjectStore(settings.replica_url))
    if drill is None or drill.duration_seconds is None:
        return "none that led back"
    return f"took {drill.duration_seconds:.1f} s at {_moment(drill.at)}"


def _timeline(log: LogFacts, alerts: list[dict[str, Any]], now: datetime) -> list[tuple[str, str]]:
    events = [(_text(alert.get("since"), 35), f"alert {_text(alert.get('name'))}") for alert in alerts]
    events = sorted([*log.events, *events])[-_MOST_EVENTS:]
    return [*events, (_moment(now.timestamp()), "this report was begun")]


def _duration(log: LogFacts) -> str:
    if not log.errors:
        return "... minutes"
    return f"... minutes (errors in the log from {min(at for at, _ in log.events)} to {log.errors[-1]['at']})"


def _release(samples: list[tuple[str, str, float]]) -> str:
    running = next((labels for name, labels, _ in samples if name == "build_info"), "")
    return f"{__version__} ({_text(running)})" if running else __version__


def _objective(objective: dict[str, Any]) -> str:
    values = objective.get("values")
    shown = ", ".join(f"{span} {_number(value)}" for span, value in values.items()) if isinstance(values, dict) else ""
    parts = (objective.get("title"), objective.get("target"), shown, objective.get("state"))
    return " · ".join(map(_text, parts))


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _shown(samples: list[tuple[str, str, float]]) -> Iterator[str]:
    """Gauges and totals; of requests, how many of each status."""
    statuses: dict[str, float] = {}
    for name, labels, value in samples:
        if name == "http_requests_total" and (match := re.search(r'status="(\d+)"', labels)):
            statuses[match[1]] = statuses.get(match[1], 0) + value
        elif not labels and not name.endswith("_created"):
            yield f"{name} {value:.15g}"
    yield from (f'http_requests_total{{status="{status}"}} {count:.15g}' for status, count in sorted(statuses.items()))


def _samples(metrics: Answer) -> Iterator[tuple[str, str, float]]:
    if metrics.status == 200:
        for line in metrics.body.splitlines():
            if match := _SAMPLE.fullmatch(line):
                with suppress(ValueError):
                    yield match[1], match[2] or "", float(match[3])


def _of(answer: Answer) -> str:
    if not answer.status:
        return _text(answer.body)
    shown = f": {_text(answer.body)}" if answer.body.startswith("{") else ""
    return f"{answer.status}{shown}"


def _members(answer: Answer) -> dict[str, Any]:
    return _record(answer.body.encode()) or {} if answer.status == 200 else {}


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _records(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _values(members: dict[str, Any]) -> list[str]:
    return [_text(value) for value in members.values() if value not in (None, "")]


def _titled(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("", f"### {title}", "", "```text", *(list(lines) or ["none"]), "```")


def _text(value: object, longest: int = _LONGEST) -> str:
    """On one line, as it can be shown to anybody and stand anywhere in the page."""
    text = " ".join("" if value is None else str(value).split())
    text = FORM.sub(r"cnp_\1_***", _CREDENTIALS.sub(r"\1 ***", text))
    text = " ".join(redacted(word) if "://" in word else word for word in text.split(" "))
    text = "".join(letter if letter.isprintable() else "?" for letter in text).replace("`", "'")
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
