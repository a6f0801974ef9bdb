"""Two of `make drill`'s; what causes the others has tests here, as in test_container.py."""

import subprocess
import sys

import pytest

from tests.drills.place import NAME
from tests.e2e.checkout import why_no_container
from tests.e2e.processes import ROOT

pytestmark = pytest.mark.e2e


def test_drills_end_as_promised() -> None:
    if reason := why_no_container(NAME):
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.drills", "--only", "all data lost", "--only", "store away"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| 0 of ") == done.stdout.count("| well |") == 2
