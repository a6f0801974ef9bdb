"""Which SQLite may be let near the file."""

import subprocess
from pathlib import Path

import apsw
import apsw.sqlite_extra
import pytest

from infra.operators.shell_version import FIRST_SOUND, shell_warnings


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "sqlite3"


def test_service_and_its_shell_have_one_sound_sqlite() -> None:
    shell = subprocess.check_output([apsw.sqlite_extra.path("sqlite3_shell"), "-version"], text=True)
    assert shell.split()[0] == apsw.sqlite_lib_version()
    assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= FIRST_SOUND


def test_no_shell_and_a_sound_one_are_nothing_to_warn_of(on_path: Path) -> None:
    assert shell_warnings() == []
    on_path.symlink_to(apsw.sqlite_extra.path("sqlite3_shell"))
    assert shell_warnings() == []


@pytest.mark.parametrize(
    ("script", "warning"),
    [
        ("echo '3.46.1 2024-08-13 09:16:08 c9c2ab (64-bit)'", "is SQLite 3.46.1, and before 3.51.3 it can lose"),
        ("echo '3.51.2 2026-01-09 17:27:48 b270f8'", "is SQLite 3.51.2, and"),
        ("exit 127", "does not say which SQLite it is"),
        ("printf '\\377'", "does not say which SQLite it is"),
    ],
)
def test_an_older_shell_is_named(on_path: Path, script: str, warning: str) -> None:
    on_path.write_text(f"#!/bin/sh\n{script}\n")
    on_path.chmod(0o755)
    (found,) = shell_warnings()
    assert found.startswith(f"{on_path} {warning}")


def test_a_shell_that_is_no_program_is_named(on_path: Path) -> None:
    on_path.write_text("no program")
    on_path.chmod(0o755)
    (found,) = shell_warnings()
    assert "does not say which SQLite it is" in found
