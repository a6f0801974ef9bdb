"""Signed requests to a function URL, as docs/lambda.md shows them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.emulator import Emulator, emulating
from tests.e2e.function_url import CREDENTIALS, REGION, USER, function_url
from tests.e2e.pages import blocks
from tests.e2e.processes import ROOT, StartProcess
from tests.e2e.stores import S3

pytestmark = pytest.mark.e2e

SCRIPT = [sys.executable, "scripts/call_function.py"]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key,
    "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_key,
    "AWS_SESSION_TOKEN": CREDENTIALS.token,
    "AWS_REGION": REGION,
    "no_proxy": "127.0.0.1",
}


@pytest.fixture
def function(start_process: StartProcess, bucket: S3) -> Iterator[Emulator]:
    """With the template's own AUTH_MODE."""
    environment = {**bucket.environment(), "BACKUP_URL": "", "AUTH_MODE": "iam"}
    with emulating(start_process, **environment) as emulator:
        yield emulator


@pytest.fixture
def url(function: Emulator) -> Iterator[str]:
    with function_url(function) as url:
        yield url


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(*SCRIPT, *arguments, **environment)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_signed_request_is_answered(url: str) -> None:
    written = call(f"{url}/api/items", json.dumps({"name": "Lämp", "price": "12.50"}))
    assert json.loads(written.stdout)["name"] == "Lämp", written
    found = call(f"{url}/api/items?limit=10&q=l%C3%A4mp")
    assert [item["name"] for item in json.loads(found.stdout)["items"]] == ["Lämp"], found
    assert json.loads(call(f"{url}/ready").stdout)["status"] == "ready"
    deleted = call("-X", "DELETE", f"{url}/api/items/1")
    assert deleted.returncode == 0, deleted
    missing = call(f"{url}/api/items/1")
    assert json.loads(missing.stdout)["status"] == 404
    assert missing.returncode != 0


def test_page_says_how(url: str) -> None:
    (script,) = [block.script for block in blocks("docs/lambda.md") if block.name == "Call it"]
    script = re.sub("^export .*", "set -e", script)
    answers = run("bash", "-c", script, FUNCTION_URL=url)
    assert answers.returncode == 0, answers
    item, page = map(json.loads, answers.stdout.splitlines())
    assert item["name"] == "Lamp"
    assert [found["name"] for found in page["items"]] == ["Lamp"]


def test_request_that_is_not_signed_right_is_refused(url: str) -> None:
    """Of this harness, or the test above could not fail."""
    for wrong in ({"AWS_SECRET_ACCESS_KEY": "another"}, {"AWS_REGION": "eu-west-1"}, {"AWS_SESSION_TOKEN": ""}):
        refused = call(f"{url}/ready", **wrong)
        assert (refused.returncode, refused.stderr) == (1, "403 Forbidden\n")
    unsigned = subprocess.run(["curl", "-s", "--noproxy", "*", f"{url}/ready"], capture_output=True, text=True)
    assert "Missing Authentication Token" in unsigned.stdout


def test_event_without_an_identity_lets_nobody_in(function: Emulator, url: str) -> None:
    """As of a function URL that asks for no signature."""
    refused = function.request("GET", "/api/items")
    assert (refused["statusCode"], json.loads(refused["body"])["code"]) == (403, "forbidden")
    assert function.request("GET", "/ready")["statusCode"] == 200
    assert json.loads(call(f"{url}/api/items").stdout)["items"] == []
    function.process.wait_for(f'"caller":"{USER}"')
    function.process.wait_for('"refused":"unverified"')


def test_script_says_what_is_missing() -> None:
    failed = call("http://127.0.0.1:9/ready")
    assert failed.returncode == 1
    assert "does not answer" in failed.stderr
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    unset = subprocess.run([*SCRIPT, "http://127.0.0.1:9"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert unset.returncode == 2
    assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION must be set" in unset.stderr
