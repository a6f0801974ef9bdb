import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from infra.disk.workspace import workspace, workspace_in

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from infra.disk.workspace import workspace, workspace_in
with workspace() as directory:
    (directory / "app.db").write_bytes(b"x")
    print(directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_directory_of_a_killed_process_is_removed_one_in_use_is_not(temporary: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        left = Path(other.stdout.readline().decode().strip())
        with workspace() as mine:
            assert left.exists()
            assert sorted(temporary.iterdir()) == sorted([left, mine])
        other.kill()
    assert (left / "app.db").exists()
    with workspace() as mine:
        assert list(temporary.iterdir()) == [mine]
    assert list(temporary.iterdir()) == []


def test_what_is_not_ours_is_left_alone(temporary: Path) -> None:
    mine = temporary / "documents"
    mine.mkdir()
    (temporary / "backup-of-something").mkdir()
    (temporary / "cloud-native-poc-scratch-link").symlink_to(mine)
    with workspace():
        pass
    assert len(list(temporary.iterdir())) == 3


def test_directory_beside_an_output_is_removed_likewise(tmp_path: Path) -> None:
    output = tmp_path / "elsewhere"
    output.mkdir()
    killed = "from pathlib import Path\n" + HOLD.replace("workspace()", f"workspace_in(Path({str(output)!r}))")
    killed = killed.replace("import workspace\n", "import workspace_in\n")
    with subprocess.Popen(
        [sys.executable, "-c", killed], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        left = Path(other.stdout.readline().decode().strip())
        other.kill()
    assert list(output.iterdir()) == [left]
    with workspace_in(output) as mine:
        assert list(output.iterdir()) == [mine]


def test_file_system_without_locks_is_used_as_well(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", fail)
    with workspace() as other, workspace() as mine:
        assert sorted(temporary.iterdir()) == sorted([other, mine])
    assert list(temporary.iterdir()) == []
