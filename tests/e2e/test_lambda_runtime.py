"""The function under the real runtime interface emulator and client, with S3 over HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.emulator import EVENTS, Emulator, emulating
from tests.e2e.processes import StartProcess

pytestmark = pytest.mark.e2e


@pytest.fixture
def emulator(start_process: StartProcess, s3: str) -> Iterator[Emulator]:
    with emulating(start_process, BACKUP_URL=s3) as emulator:
        yield emulator


def names(answer: dict[str, Any]) -> list[str]:
    return [item["name"] for item in json.loads(answer["body"])["items"]]


def test_backed_up_items_outlive_the_runtime(emulator: Emulator) -> None:
    for n in range(3):
        answer = emulator.request("POST", "/api/items", json.dumps({"name": f"item {n}"}))
        assert answer["statusCode"] == 201, answer
    report = emulator.invoke(json.loads((EVENTS / "maintain.json").read_text()))
    assert report["verified"]["rows"]["items"] == 3
    emulator.request("POST", "/api/items", '{"name": "after the backup"}')
    assert len(names(emulator.request("GET", "/api/items"))) == 4
    emulator.kill_runtime()
    emulator.request("GET", "/health")  # the emulator notices the death at the next invocation
    assert names(emulator.request("GET", "/api/items")) == ["item 0", "item 1", "item 2"]
    written = emulator.request("POST", "/api/items", '{"name": "item 4"}')
    assert json.loads(written["body"])["id"] == 4


@pytest.mark.parametrize("name", ["function_url_create", "rest_api_create"])
def test_every_gateway_is_served(emulator: Emulator, name: str) -> None:
    assert emulator.invoke(json.loads((EVENTS / f"{name}.json").read_text()))["statusCode"] == 201


def test_unknown_event_is_an_error_and_the_function_goes_on(emulator: Emulator) -> None:
    assert "unknown event" in emulator.invoke({"Records": []})["errorMessage"]
    assert emulator.request("GET", "/ready")["statusCode"] == 200
