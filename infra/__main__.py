"""The operators' commands: python -m infra backup | backups | restore | verify | status

Exit codes: 0 done, 1 failed (the message on stderr says what and why), 2 wrong settings or arguments.
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from core.errors import ServiceError, SettingsError
from infra.backups import Manifest, open_backups
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
    backups = open_backups(settings)
    with progress_display(not options.json) as progress:
        manifest = backups.restore(settings.database_path, options.name, progress)
    _print_manifest(f"restored to {settings.database_path}", manifest, options)
    return 0


def _verify(settings: Settings, options: argparse.Namespace) -> int:
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
    verify = command("verify", _verify, "download a backup and check digest, integrity and row counts")
    verify.add_argument("name", nargs="?", help="a name from `backups`; default: the newest")
    command("status", _status, "database, owner and newest backup; exit code 1 if something needs attention")
    return parser


if __name__ == "__main__":
    sys.exit(main())
