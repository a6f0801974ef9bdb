"""The `sqlite3` that somebody would type here, and whether it may be let near a live file."""

import re
import shutil
import subprocess

FIRST_SOUND = (3, 51, 3)  # the first that cannot lose a commit: https://sqlite.org/wal.html#walresetbug


def shell_warnings() -> list[str]:
    """Name a `sqlite3` on PATH that is too old for a file which others write too."""
    if not (path := shutil.which("sqlite3")):
        return []
    try:
        answer = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=10).stdout  # noqa: S603
    except (OSError, ValueError, subprocess.TimeoutExpired):
        answer = ""
    if not (version := re.match(r"(\d+)\.(\d+)\.(\d+)", answer)):
        return [f"{path} does not say which SQLite it is: do not use it on the live file"]
    if tuple(map(int, version.groups())) >= FIRST_SOUND:
        return []
    first = ".".join(map(str, FIRST_SOUND))
    return [
        f"{path} is SQLite {version[0]}, and before {first} it can lose what others commit: "
        "on the live file use the image's `sqlite3` or `.venv/bin/sqlite3`"
    ]
