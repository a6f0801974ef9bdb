"""The operators' commands: python -m infra COMMAND, or `cloud-native-poc COMMAND`, which --help lists.

Exit codes: 0 done, 1 failed (the message on stderr says what and why), 2 wrong settings or arguments. `status` says by
its own how it is: 0 well, 1 something needs attention, 3 degraded, 4 down.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from core import __version__, api_keys
from core.errors import MoveFailed, ServiceError, SettingsError, StatementRefused
from core.stored import now
from infra.backups.backups import Manifest, open_backups
from infra.backups.retention import is_label
from infra.clock import Clock
from infra.commitlog import START, CommitLog, Position, Replica, open_log, statements_of_changes
from infra.commitlog.upkeep import Doubt, cold_start, commit_before, date_text, verify_log
from infra.database import UseCase
from infra.disk.ownership import give_to_owner_of
from infra.disk.workspace import workspace, workspace_in
from infra.inspection import open_live
from infra.maintenance.drill import RTO_SECONDS, Drill, run_drill
from infra.maintenance.job import Preview, open_maintenance
from infra.maintenance.report import Report
from infra.operators.completion import SHELLS, completion
from infra.operators.incident import (
    SEVERITIES,
    LogFacts,
    asked_of,
    incident_report,
    read_log,
    write_report_file,
)
from infra.operators.keys import as_line, in_log, in_postgresql, keys_in, parse_expiry, parse_name, state_of
from infra.operators.progress import progress_display
from infra.operators.restore import parse_moment, publish, restore_log
from infra.operators.sql import Outcome, as_members, as_text, parts_of, private_copy, run_parts
from infra.operators.status import Status, check_log_is_there, read_status
from infra.postgresql import driver_is_needed
from infra.progress import Progress
from infra.settings import SERVICE, Settings
from infra.sqlite_errors import translated_errors
from infra.storage.object_store import TRANSFER_SECONDS, ObjectStore

T = TypeVar("T")

if TYPE_CHECKING:
    from infra.moving.rows import Moved

_EXIT_CODES = {"well": 0, "attention": 1, "degraded": 3, "down": 4}  # of `status`; 2 is for wrong settings


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        settings = options.settings()
        if settings.database_url and options.on_postgresql:
            raise SettingsError(f"DATABASE_URL is set, and PostgreSQL has a tool of its own: {options.on_postgresql}")
        return int(options.run(settings, options))
    except SettingsError as error:
        return _fail(str(error), 2)
    except ServiceError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _maintain(settings: Settings, options: argparse.Namespace) -> int:
    _check_has_log(settings)
    check_log_is_there(settings)
    maintenance = open_maintenance(settings, open_backups(settings))
    if options.dry_run:
        _print_preview(maintenance.preview(), options)
        return 0
    with progress_display(not options.json) as progress:
        report = maintenance.run(progress=progress)
    if options.json:
        print(json.dumps(asdict(report)))
    else:
        _print_report(report)
    return 1 if report.problems else 0


def _print_report(report: Report) -> None:
    for problem in report.problems:
        print(f"problem, so nothing more is deleted: {problem}")
    for warning in report.warnings():
        print(f"warning: {warning}")
    if not report.txid and not report.problems:
        print("the log is empty: there is nothing to look after")
    print(f"{report.runs_merged} runs merged")
    if report.snapshot:
        print(f"snapshot made at TXID {report.snapshot}")
    if report.sidecar:
        print(f"sidecar made anew for the snapshot at TXID {report.sidecar}")
    if report.backup:
        print(f"backup made: {report.backup}")
    if verified := report.verified:
        moment = datetime.fromtimestamp(verified.at, UTC).isoformat(timespec="seconds")
        when = "verified" if verified.at >= report.started_at else "last verified"
        what = f"snapshot {verified.snapshot}, {verified.backup}, TXID {verified.txid}"
        print(f"{when} at {moment}: {what}: {_rows(verified.rows)}")
    print(f"deleted: {report.deleted_objects:,} objects of the log, {report.deleted_backups:,} backups")


def _print_preview(preview: Preview, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(asdict(preview), default=str))
        return
    print(f"would merge {preview.runs} runs or more")
    print(f"would {'make a' if preview.snapshot else 'make no'} snapshot and {'a' if preview.backup else 'no'} backup")
    if preview.sidecar:
        print("would make the sidecar of the newest snapshot anew")
    for one in preview.objects:
        item = one.item
        print(f"would delete level {item.level} {item.min_txid:016x}-{item.max_txid:016x}: {one.why}")
    for backup in preview.backups:
        print(f"would delete {backup.backup.name}: {backup.why}")
    print(
        f"would delete {len(preview.objects):,} objects of the log and {len(preview.backups):,} backups, "
        f"if the snapshot at TXID {preview.verified} is found sound"
    )


def _backup(settings: Settings, options: argparse.Namespace) -> int:
    log = _open_log(settings)
    backups = open_backups(settings)
    with workspace() as scratch, progress_display(not options.json) as progress:
        image = scratch / "app.db"
        position = restore_log(log, image, None, progress)
        manifest = backups.create(image, position, options.label, progress)
    _print_manifest("made", manifest, options)
    return 0


def _backups(settings: Settings, options: argparse.Namespace) -> int:
    found = open_backups(settings).list()
    if options.json:
        print(json.dumps([asdict(backup) for backup in found], default=str))
        return 0
    for backup in found:
        state = "" if backup.complete else "  incomplete: no manifest"
        print(f"{backup.name:<48} {backup.time:%Y-%m-%d %H:%M} UTC {backup.size:>12,} bytes{state}")
    print(f"{len(found)} backups at {settings.backup_url}")
    return 0


def _restore(settings: Settings, options: argparse.Namespace) -> int:
    asked = [value for value in (options.name, options.at, options.txid) if value is not None]
    if len(asked) > 1 or "" in asked or not (asked or options.output):
        raise SettingsError(
            "say what: a backup's name (or `latest`), --at TIME or --txid N, by `make restore` NAME=latest, AT=TIME or "
            "TXID=N; without any, -o FILE too"
        )
    at = parse_moment(options.at) if options.at else None
    log = _open_log(settings)
    doubt: Doubt | None = None
    with _scratch(options.output) as scratch, progress_display(not options.json) as progress:
        image = scratch / "app.db"
        if options.name:
            source = _restored_backup(settings, options.name, image, progress)
        else:
            source, doubt = _restored_log(log, at, options.txid, image, progress)
        keys = keys_in(image)
        if options.output:
            _put_in_place(image, options.output)
            _warn_of_keys(keys, "whoever puts this file in place lets in whom it lets in")
            message = f"{options.output} is the database of {source}"
            return _print_result(options, message, doubt, file=str(options.output), of=source)
        before, after = publish(log, Clock(), image)
    if before == after:
        message = f"nothing to do: the newest commit, TXID {_hex(after)}, has the content of {source}"
        return _print_result(options, message, doubt, txid=_hex(after), of=source)
    message = f"TXID {_hex(after)} of {log.url} is the state of {source}"
    if before == START:
        _warn_of_keys(keys, "the log was empty, so nobody knows which were revoked later")
        return _print_result(options, message, doubt, txid=_hex(after), of=source)
    undo = f"restore --txid {_hex(before)}"
    message += f"; to undo it: python -m infra {undo}"
    return _print_result(options, message, doubt, txid=_hex(after), of=source, undo=undo)


def _warn_of_keys(keys: int, why: str) -> None:
    if keys:
        print(
            f"warning: {keys} of its keys are as they were then, not revoked: {why}; see `keys list`", file=sys.stderr
        )


@contextmanager
def _scratch(output: Path | None) -> Iterator[Path]:
    """Where the output is to be, if there is one: it appears when it is whole, and nothing half-made stays."""
    if output is None:
        with workspace() as directory:
            yield directory
        return
    if os.path.lexists(output):
        raise SettingsError(f"{output} exists; name a file that does not")
    try:
        with workspace_in(output.parent) as directory:
            yield directory
    except OSError as error:
        raise SettingsError(f"{output} cannot be written: {error.strerror}") from error


def _put_in_place(image: Path, output: Path) -> None:
    """Never over a file that is there."""
    give_to_owner_of(output.parent, image)
    try:
        os.link(image, output)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(image, output)


def _restored_backup(settings: Settings, name: str, target: Path, progress: Progress) -> str:
    manifest = open_backups(settings).restore(target, name, progress)
    return f"{manifest.name} ({_rows(manifest.rows)})"


def _restored_log(
    log: CommitLog, at: datetime | None, txid: int | None, target: Path, progress: Progress
) -> tuple[str, Doubt | None]:
    found = commit_before(log, at) if at else None
    position = restore_log(log, target, found.txid if found else txid, progress)
    return f"TXID {_hex(position)} of {date_text(position.timestamp)}", found.doubt if found else None


def _print_result(options: argparse.Namespace, message: str, doubt: Doubt | None, **fields: str) -> int:
    if options.json:
        doubts = {"warning": doubt.warning, "other_txid": f"{doubt.other:016x}" if doubt.other else ""} if doubt else {}
        print(json.dumps(fields | doubts))
        return 0
    if doubt:
        print(f"warning: {doubt.warning}", file=sys.stderr)
    print(message)
    return 0


def _sql(settings: Settings, options: argparse.Namespace) -> int:
    asked = "\n;\n".join(options.statements)
    parts = parts_of(_standard_input() if asked in ("", "-") else asked)
    log = _open_log(settings)
    if len(parts) > 1:
        print(f"VACUUM needs a commit of its own: this script is {len(parts)}, each for itself", file=sys.stderr)
    done: list[Outcome] = []
    try:
        with workspace() as scratch:
            for outcome in run_parts(log, Clock(), parts, scratch / "app.db", options.timeout):
                done.append(outcome)
                if not options.json:
                    _print_outcome(outcome)
    except KeyboardInterrupt:
        return _fail("interrupted: what was not printed may be stored or not; look before you repeat it", 130)
    finally:
        if options.json:
            _print_outcomes(done)
    return 0


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeError:
        raise StatementRefused("the script is not UTF-8") from None


def _print_outcome(outcome: Outcome) -> None:
    for rows in outcome.answers:
        print(as_text(rows))
    if outcome.txid:
        print(f"commit {outcome.txid:016x} ({outcome.changed:,} rows changed)")
        print(f"to undo it, and all that came after it: python -m infra restore --txid {outcome.before:016x}")
    elif outcome.writes:
        print("nothing was changed, so there is no commit")


def _print_outcomes(outcomes: list[Outcome]) -> None:
    commits = [
        {
            "txid": f"{outcome.txid:016x}",
            "rows_changed": outcome.changed,
            "undo": f"restore --txid {outcome.before:016x}",
        }
        for outcome in outcomes
        if outcome.txid
    ]
    answers = [as_members(rows) for outcome in outcomes for rows in outcome.answers]
    print(json.dumps({"answers": answers, "commits": commits}))


def _create_key(settings: Settings, options: argparse.Namespace) -> int:
    name = parse_name(options.name)
    expires_at = parse_expiry(options.expires) if options.expires else None
    make = partial(api_keys.create, name=name, scopes=frozenset(options.scope), expires_at=expires_at)
    key = _with_keys(settings, make)
    key_id = key.split("_")[1]
    if options.json:
        print(json.dumps({"id": key_id, "key": key}))
        return 0
    print(f"key {key_id}, which nobody can show again; `keys revoke {key_id}` takes it back:", file=sys.stderr)
    print(key)
    return 0


def _list_keys(settings: Settings, options: argparse.Namespace) -> int:
    found = _with_keys(settings, api_keys.list_keys)
    moment = now()
    if options.json:
        print(json.dumps([{**asdict(key), "state": state_of(key, moment)} for key in found]))
        return 0
    for key in found:
        print(as_line(key, moment))
    print(f"{len(found)} keys at {settings.database if settings.database_url else settings.replica_url}")
    return 0


def _revoke_key(settings: Settings, options: argparse.Namespace) -> int:
    _with_keys(settings, partial(api_keys.revoke, key_id=options.id))
    if options.json:
        print(json.dumps({"id": options.id, "state": "revoked"}))
        return 0
    print(f"key {options.id} is revoked, and lets nobody in any more after READ_FRESHNESS_SECONDS")
    return 0


def _with_keys(settings: Settings, use_case: UseCase[T]) -> T:
    if settings.database_url:
        return in_postgresql(settings, use_case)
    with workspace() as scratch:
        return in_log(_open_log(settings), scratch / "app.db", use_case)


def _rows(rows: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {table}" for table, count in rows.items())


def _hex(position: Position) -> str:
    return f"{position.txid:016x}"


def _move(log_settings: Settings, options: argparse.Namespace) -> int:
    settings = _settings_of_database(options.url)
    with driver_is_needed():
        from psycopg import Error as EngineError
    try:
        with translated_errors(Path(tempfile.gettempdir())):  # where the copies are
            return (_move_back if options.back else _move_there)(log_settings, settings, options)
    except SettingsError:
        raise
    except (ServiceError, EngineError) as error:
        raise MoveFailed(f"{error}\nRun it again: nothing is lost, whatever it has come to") from error


def _move_there(log_settings: Settings, settings: Settings, options: argparse.Namespace) -> int:
    from infra.moving.target import Target
    from infra.moving.there import Move

    with (
        workspace() as scratch,
        progress_display(not options.json) as progress,
        closing(Target(settings)) as target,
        _private_copy(log_settings, scratch) as replica,
    ):
        move = Move(replica, target, scratch, log_settings.keep_idempotency_keys_hours, progress, _say)
        if options.cancel:
            return _print_done(options, move.cancel())
        if options.dry_run:
            move.rehearse()
            return _print_done(options, f"all of it can be moved to {target.place}; nothing was changed anywhere")
        moved = move.run()
    if not moved:
        return _print_done(options, f"it was moved to {target.place} before")
    undo = f"restore --txid {moved.before:016x}"
    return _print_moved(options, moved, undo, f"python -m infra {undo}")


def _print_moved(options: argparse.Namespace, moved: "Moved", undo: str, how: str) -> int:
    for table, total in moved.sums.items():
        _say(f"{table}: {total}, on both sides")
    message = (
        f"moved to {moved.place}; nobody could write for {moved.stopped_seconds:.2f} s\n"
        f"to undo it, without what is written there from now on: {how}"
    )
    counts = {table: total.rows for table, total in moved.sums.items()}
    return _print_done(options, message, rows=counts, stopped_seconds=moved.stopped_seconds, undo=undo)


@contextmanager
def _private_copy(settings: Settings, scratch: Path) -> Iterator[Replica]:
    log = _open_log(settings)
    _say(f"a private copy of {log.url} is being made")
    with private_copy(log, Clock(), scratch / "app.db") as replica:
        yield replica


def _move_back(log_settings: Settings, settings: Settings, options: argparse.Namespace) -> int:
    from infra.moving.back import MoveBack
    from infra.moving.source import Source

    if options.cancel:
        raise SettingsError("a move back that was stopped has changed nothing for anybody: run it again, or do not")
    log = _open_log(log_settings)
    with (
        workspace() as scratch,
        progress_display(not options.json) as progress,
        closing(Source(settings)) as source,
    ):
        move = MoveBack(log, source, scratch, progress, _say)
        if options.dry_run:
            move.rehearse()
            return _print_done(options, f"all of it can be moved to {log.url}; nothing was changed anywhere")
        moved = move.run()
    if not moved:
        return _print_done(options, f"it was moved to {log.url} before")
    undo = "DROP FUNCTION write_stop() CASCADE"
    return _print_moved(options, moved, undo, f'psql -c "{undo}" at {source.place}')


def _print_done(options: argparse.Namespace, message: str, **fields: Any) -> int:
    print(json.dumps({"message": message, **fields}) if options.json else message)
    return 0


def _settings_of_log() -> Settings:
    """Of the one side of a move; the other has DATABASE_URL."""
    return Settings.from_environment({name: value for name, value in os.environ.items() if name != "DATABASE_URL"})


def _settings_of_database(url: str | None) -> Settings:
    given = {name: value for name, value in os.environ.items() if name not in ("REPLICA_URL", "BACKUP_URL")}
    settings = Settings.from_environment(given | ({"DATABASE_URL": url} if url else {}))
    if not settings.database_url:
        raise SettingsError("say which database, as postgresql://host/database, or set DATABASE_URL")
    return settings


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _changes(settings: Settings, options: argparse.Namespace) -> int:
    try:
        changeset = options.file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{options.file} cannot be read: {error.strerror}") from error
    with open_live(settings.database_path) as connection:
        for statement in statements_of_changes(changeset, connection):
            print(statement)
    return 0


def _log(settings: Settings, options: argparse.Namespace) -> int:
    log = _open_log(settings)
    check_log_is_there(settings)
    found = log.objects.everything()
    if options.json:
        print(json.dumps([asdict(item) for item in found], default=str))
        return 0
    if found:
        print(f"a start without a file reads it in {cold_start(found, log.objects.sidecars())}")
    for level, items in groupby(found, lambda item: item.level):
        members = list(items)
        first, last = members[0], members[-1]
        print(
            f"level {level}  TXID {first.min_txid:016x}-{last.max_txid:016x}  {len(members):>7,} objects  "
            f"{sum(item.size for item in members):>14,} bytes  {first.modified:%Y-%m-%d %H:%M:%S} - "
            f"{last.modified:%Y-%m-%d %H:%M:%S} UTC"
        )
    print(f"{len(found):,} objects at {log.url}")
    return 0


def _verify_log(settings: Settings, options: argparse.Namespace) -> int:
    log = _open_log(settings)
    check_log_is_there(settings)
    with workspace() as scratch, progress_display(not options.json) as progress:
        findings = verify_log(log, scratch / "app.db", progress)
    if options.json:
        print(json.dumps(asdict(findings)))
    else:
        for problem in findings.problems:
            print(f"problem  {problem}")
        for warning in findings.warnings:
            print(f"warning  {warning}")
        for leftover in findings.leftovers:
            print(f"leftover {leftover}")
        state = "has problems" if findings.problems else "is sound"
        print(f"{log.url} {state}: {findings.objects:,} objects, {findings.bytes:,} bytes, TXID {findings.head:016x}")
    return 1 if findings.problems else 0


def _open_log(settings: Settings) -> CommitLog:
    _check_has_log(settings)
    return open_log(settings.replica_url, Clock(), TRANSFER_SECONDS)


def _check_has_log(settings: Settings) -> None:
    if not settings.replica_url:
        raise SettingsError("REPLICA_URL is not set: there is no commit log")


def _verify(settings: Settings, options: argparse.Namespace) -> int:
    if options.name is None:
        return _verify_log(settings, options)
    backups = open_backups(settings)
    with progress_display(not options.json) as progress:
        manifest = backups.verify(options.name, progress)
    _print_manifest("is sound", manifest, options)
    return 0


def _status(settings: Settings, options: argparse.Namespace) -> int:
    status = read_status(settings)
    if options.json:
        print(json.dumps(asdict(status)))
    else:
        _print_status(status)
    return _EXIT_CODES[status.state]


def _print_status(status: Status) -> None:
    since = f" (since {status.since})" if status.since else ""
    print(f"{'state':<16} {status.state}{since}: {status.reason}")
    for name, value in asdict(status).items():
        if name not in ("state", "reason", "since", "objectives", "alerts", "warnings", "problems"):
            print(f"{name.replace('_', ' '):<16} {value}")
    for it in status.objectives:
        left = "" if it["budget_left"] is None else f"; {100 * it['budget_left']:.0f} % of the budget left"
        print(f"{'objective':<16} {it['state']:<8} {it['title']} {it['target']}: {it['reason']}{left}")
    for it in status.alerts:
        last = (
            it["last"] and f" The last {it['last']['what']} was at {it['last']['at']}; over by {it['last']['until']}."
        )
        text = f"{it['severity']} {it['name']} since {it['since']}: {it['summary']}{last or ''} See {it['runbook']}"
        print(f"{'alert':<16} {text}")
    for warning in status.warnings:
        print(f"warning          {warning}")
    for problem in status.problems:
        print(f"problem          {problem}")


def _drill(settings: Settings, options: argparse.Namespace) -> int:
    log, store = _open_log(settings), ObjectStore(settings.replica_url)
    with progress_display(not options.json) as progress:
        drill = run_drill(log, store, open_backups(settings), progress)
    if options.json:
        print(json.dumps({**asdict(drill), "duration_seconds": drill.duration_seconds}))
    else:
        _print_drill(drill)
    return 1 if drill.problems else 0


def _print_drill(drill: Drill) -> None:
    for problem in drill.problems:
        print(f"problem: {problem}")
    for restored in filter(None, (drill.log, drill.backup)):
        rows, txid = _rows(restored.rows), restored.txid or "unknown"
        lacks = f"the writes of the last {restored.lacks_seconds:,.0f} s" if restored.lacks_seconds else "nothing"
        print(f"{restored.source}, TXID {txid}: {rows}; restored in {restored.seconds:.1f} s, lacks {lacks}")
    if (took := drill.duration_seconds) is not None:
        print(f"the slower way took {took:.1f} s (RTO); the objective is {RTO_SECONDS:,.0f} s")


def _incident(settings: Settings, options: argparse.Namespace) -> int:
    log = _log_facts(options.log) if options.log else LogFacts()
    text = incident_report(
        settings, options.title, options.severity, log, asked_of(settings, os.environ.get("API_KEY", ""))
    )
    if options.output == "-":
        print(json.dumps({"report": text}) if options.json else text)
        return 0
    path = write_report_file(Path(options.output), text)
    print(json.dumps({"file": str(path)}) if options.json else f"{path} is there to be completed")
    return 0


def _log_facts(name: str) -> LogFacts:
    if name == "-":
        return read_log(sys.stdin.buffer)
    try:
        with Path(name).open("rb") as file:
            return read_log(file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{name!r} cannot be read: {error}") from error


def _print_manifest(what: str, manifest: Manifest, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(asdict(manifest)))
        return
    print(f"{manifest.name} {what}: {_rows(manifest.rows)}; {manifest.size:,} bytes, sha256 {manifest.sha256}")


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _label(text: str) -> str:
    if not is_label(text):
        raise argparse.ArgumentTypeError(f"{text!r}: at most 40 lower-case letters, digits and dashes, a letter first")
    return text


def _txid(text: str) -> int:
    """As `log` and X-Commit-Txid show it."""
    with suppress(ValueError):
        if (txid := int(text, 16)) > 0:
            return txid
    raise argparse.ArgumentTypeError(f"{text!r} is no TXID; `infra log` shows them, as 00000000000001a4")


class _PrintCompletion(argparse.Action):
    """Acts at once, as --help and --version do: whatever the settings are."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, value: Any, option: str | None = None) -> None:
        print(completion(parser, value))
        parser.exit()


def _program() -> str:
    return SERVICE if Path(sys.argv[0]).name == SERVICE else "python -m infra"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_program(), description="Look after the database and its backups.")
    parser.add_argument("--version", action="version", version=f"{SERVICE} {__version__}")
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=SHELLS, help=f"for `{SERVICE}`; a shell may `eval` it"
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, run: Any, help: str, commands: Any = commands, on_postgresql: str = ""
    ) -> argparse.ArgumentParser:
        """`on_postgresql`: what does it there, where the command has nothing to look after."""
        added: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
        added.add_argument("--json", action="store_true", help="print one JSON document for programs")
        added.set_defaults(run=run, on_postgresql=on_postgresql, settings=Settings.from_environment)
        return added

    help = "merge, write snapshot and backup, prove both, delete what is old"
    maintain = command("maintain", _maintain, help, on_postgresql="autovacuum, and whatever makes its backups")
    maintain.add_argument("--dry-run", action="store_true", help="print what would be done, and why, and do nothing")
    help = "back up the log's newest state and check the upload"
    backup = command("backup", _backup, help, on_postgresql="pg_dump, or the snapshots of whoever runs it")
    backup.add_argument("--label", type=_label, help="a word such as pre-deploy; a labelled backup is never pruned")
    command("backups", _backups, "list the backups, oldest first", on_postgresql="whatever makes its backups")
    help = "make an earlier state the newest commit, or write it to a file"
    restore = command("restore", _restore, help, on_postgresql="pg_restore, or its point-in-time recovery (PITR)")
    restore.add_argument("name", nargs="?", help="a name from `backups`, or `latest`")
    restore.add_argument("--at", metavar="TIME", help="the log's state before this moment, as 2026-01-31T12:00:00Z")
    restore.add_argument("--txid", metavar="N", type=_txid, help="the log's state after this commit, hexadecimal")
    restore.add_argument("-o", "--output", type=Path, metavar="FILE", help="only write it, to this new file")
    help = "run SQL as commits of the log, whoever serves it meanwhile; VACUUM and SELECT too"
    sql = command("sql", _sql, help, on_postgresql="psql")
    sql.add_argument("statements", nargs="*", help="one or more; none, or -, reads a script from standard input")
    sql.add_argument("--timeout", metavar="SECONDS", type=float, default=60.0, help="for each commit; 60 unless given")
    help = "let callers in, with keys of their own, and keep them out again"
    keys = commands.add_parser("keys", help=help, description=help).add_subparsers(required=True, metavar="what")
    create = command("create", _create_key, "make a key and print it, which cannot be done again", keys)
    create.add_argument("name", help="whose it is, for people")
    create.add_argument(
        "--scope",
        required=True,
        action="append",
        choices=[scope.value for scope in api_keys.Scope],
        help="once or more",
    )
    create.add_argument("--expires", metavar="TIME", help="as 2027-01-31T00:00:00Z, or 30d; never unless given")
    command("list", _list_keys, "whose keys there are, what for, and when each was last used", keys)
    revoke = command("revoke", _revoke_key, "let nobody in any more with this key", keys)
    revoke.add_argument("id", help="as `list` shows it")
    help = "read the whole commit log and check it; or one backup, by name"
    verify = command("verify", _verify, help, on_postgresql="pg_amcheck, and pg_restore for a backup")
    verify.add_argument("name", nargs="?", help="a name from `backups`, or `latest`: check that backup instead")
    help = "show a kept app.db.changes-... file as SQL"
    changes = command("changes", _changes, help, on_postgresql="none, for it keeps no such files")
    changes.add_argument("file", type=Path, help="it names rows of the database at DATABASE_PATH")
    help = "restore newest state and newest backup into scratch, check them, measure RTO and RPO"
    command(
        "drill", _drill, help, on_postgresql="pg_restore into another database, or its point-in-time recovery (PITR)"
    )
    help = "begin the report of an incident, with what can be known filled in; metrics may want an API_KEY of scope ops"
    incident = command("incident", _incident, help)
    incident.add_argument("title", help="what happened, in a few words")
    incident.add_argument("--severity", choices=SEVERITIES, help="that of the worst alert unless given")
    incident.add_argument(
        "--log", metavar="FILE", help="the service's lines, for errors and starts; - is standard input"
    )
    help = "where the new file is to be, incidents unless given; - prints it"
    incident.add_argument("-o", "--output", metavar="DIRECTORY", default="incidents", help=help)
    help = "move the data into an empty PostgreSQL while the servers run, or with --back into a new log"
    move = command("move", _move, help)
    move.set_defaults(settings=_settings_of_log)
    move.add_argument(
        "url", nargs="?", metavar="DATABASE_URL", help="postgresql://host/database; the log is REPLICA_URL"
    )
    how = move.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="see whether all of it can be moved, and change nothing")
    how.add_argument("--cancel", action="store_true", help="undo a move that has not come to its end")
    move.add_argument("--back", action="store_true", help="the other way, into the log at REPLICA_URL, which is empty")
    help = "what the commit log holds: ranges, sizes, times"
    command("log", _log, help, on_postgresql="pg_waldump, and its statistics (pg_stat_wal)")
    help = "objectives, alerts, database, backup, maintenance; exit code 1: needs attention, 3: degraded, 4: down"
    on_postgresql = "psql (pg_stat_activity, pg_stat_database); how the service is, it says itself at /ops/status"
    command("status", _status, help, on_postgresql=on_postgresql)
    return parser


if __name__ == "__main__":
    sys.exit(main())
