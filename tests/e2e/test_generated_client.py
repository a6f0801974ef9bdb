"""A client that is generated out of openapi.json works, with the models and the names of the document."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import ROOT, StartProcess

pytestmark = pytest.mark.e2e

TOOLS = ROOT / ".venv-contract" / "bin"


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_generated_client_creates_once_pages_updates_and_meets_problems(
    start_process: StartProcess, tmp_path: Path
) -> None:
    unformatted = tmp_path / "generator.yml"
    unformatted.write_text("post_hooks: []\n")
    client = tmp_path / "client"
    generating = ("generate", "--path", ROOT / "openapi.json", "--output-path", client, "--config", unformatted)
    said = run(TOOLS / "openapi-python-client", *generating)
    assert "warning" not in said.lower()
    server = start_process(sys.executable, "-m", "handler")
    url = server.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
    run(TOOLS / "python", ROOT / "tests" / "contract" / "client.py", url, PYTHONPATH=str(client), NO_PROXY="*")
