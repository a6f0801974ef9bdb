import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from infra.workspace import workspace

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from infra.workspace import workspace
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
    (temporary / "cloud-native-poc-backup-link").symlink_to(mine)
    with workspace():
        pass
    assert len(list(temporary.iterdir())) == 3
