"""The operators' commands: python -m infra backup | backups | restore | verify | log | status

Exit codes: 0 done, 1 failed (the message on stderr says what and why), 2 wrong settings or arguments.
"""

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import LogDamaged, ServiceError, SettingsError
from infra.backups import Manifest, open_backups
from infra.clock import Clock
from infra.commitlog.chain import START
from infra.commitlog.log import CommitLog, open_log
from infra.commitlog.verify import verify
from infra.database import publish_file
from infra.progress import progress_display
from infra.settings import Settings
from infra.status import read_status


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        settings = Settings.from_environment()
        return int(options.run(settings, options))
    except SettingsError as error:
        return _fail(str(error), 2)
    except ServiceError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _backup(settings: Settings, options: argparse.Namespace) -> int:
    backups = open_backups(settings)
    with progress_display(not options.json) as progress:
        manifest = backups.create(settings.database_path, options.label, progress)
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
    if options.output:
        return _restore_log(settings, options)
    backups = open_backups(settings)
    with progress_display(not options.json) as progress:
        manifest = backups.restore(settings.database_path, options.name, progress, partial(publish_file, settings))
    _print_manifest(f"restored to {settings.database_path}", manifest, options)
    return 0


def _restore_log(settings: Settings, options: argparse.Namespace) -> int:
    if options.name:
        raise SettingsError("-o writes the commit log's newest state; a backup's name does not go with it")
    log = _open_log(settings)
    try:
        with progress_display(not options.json) as progress:
            position = log.restore(options.output, progress=progress)
    except FileExistsError:
        raise SettingsError(f"{options.output} exists; name a file that does not") from None
    except OSError as error:
        raise SettingsError(f"{options.output} cannot be written: {error.strerror}") from error
    if position == START:
        options.output.unlink()
        raise LogDamaged(f"{log.url} is empty: there is nothing to restore")
    moment = datetime.fromtimestamp(position.timestamp / 1000, UTC).isoformat()
    if options.json:
        print(json.dumps({"file": str(options.output), "txid": f"{position.txid:016x}", "committed_at": moment}))
    else:
        print(f"{options.output} is the database after commit {position.txid:016x} of {moment}")
    return 0


def _log(settings: Settings, options: argparse.Namespace) -> int:
    log = _open_log(settings)
    found = log.everything()
    if options.json:
        print(json.dumps([asdict(item) for item in found], default=str))
        return 0
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
    with TemporaryDirectory(prefix="verify-") as scratch, progress_display(not options.json) as progress:
        verdict = verify(log, Path(scratch) / "app.db", progress)
    if options.json:
        print(json.dumps(asdict(verdict)))
    else:
        for problem in verdict.problems:
            print(f"problem  {problem}")
        for leftover in verdict.leftovers:
            print(f"leftover {leftover}")
        state = "has problems" if verdict.problems else "is sound"
        print(f"{log.url} {state}: {verdict.objects:,} objects, {verdict.bytes:,} bytes, TXID {verdict.head:016x}")
    return 1 if verdict.problems else 0


def _open_log(settings: Settings) -> CommitLog:
    if not settings.replica_url:
        raise SettingsError("REPLICA_URL is not set: there is no commit log")
    return open_log(settings.replica_url, Clock())


def _verify(settings: Settings, options: argparse.Namespace) -> int:
    if options.name is None:
        return _verify_log(settings, options)
    backups = open_backups(settings)
    with progress_display(not options.json) as progress:
        manifest = backups.verify(options.name, progress)
    _print_manifest("is sound", manifest, options)
    return 0


def _status(settings: Settings, options: argparse.Namespace) -> int:
    status = read_status(settings, open_backups(settings))
    if options.json:
        print(json.dumps(asdict(status)))
    else:
        for name, value in asdict(status).items():
            if name != "problems":
                print(f"{name.replace('_', ' '):<16} {value}")
        for problem in status.problems:
            print(f"problem          {problem}")
    return 1 if status.problems else 0


def _print_manifest(what: str, manifest: Manifest, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(asdict(manifest)))
        return
    rows = ", ".join(f"{count:,} {table}" for table, count in manifest.rows.items())
    print(f"{manifest.name} {what}: {rows}; {manifest.size:,} bytes, sha256 {manifest.sha256}")


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra", description="Look after the database and its backups.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("--json", action="store_true", help="print one JSON document for programs")
        added.set_defaults(run=run)
        return added

    backup = command("backup", _backup, "back up the live database, check the upload, prune old backups")
    backup.add_argument("--label", help="a word such as pre-deploy; a labelled backup is never pruned")
    command("backups", _backups, "list the backups, oldest first")
    restore = command("restore", _restore, "put a backup in the place of the database (the service must be stopped)")
    restore.add_argument("name", nargs="?", help="a name from `backups`; default: the newest")
    restore.add_argument(
        "-o", "--output", type=Path, help="write the commit log's newest state to this new file instead"
    )
    verify = command("verify", _verify, "read the whole commit log and check it; or one backup, by name")
    verify.add_argument("name", nargs="?", help="a name from `backups`, or `latest`: check that backup instead")
    command("log", _log, "what the commit log holds: ranges, sizes, times")
    command("status", _status, "database, owner and newest backup; exit code 1 if something needs attention")
    return parser


if __name__ == "__main__":
    sys.exit(main())
