"""The functions as `sam` builds and runs them, with the local S3 of the Compose file."""

import json
import os
from collections.abc import Iterator

import httpx2
import pytest

from tests.e2e.checkout import FUNCTION_IMAGE, Checkout
from tests.e2e.emulator import EVENTS
from tests.e2e.processes import ROOT, StartProcess, free_port

pytestmark = pytest.mark.e2e

SAM = ".venv-sam/bin/sam"
RUNNING = f"docker ps --quiet --filter ancestor={FUNCTION_IMAGE}"
# One attempt: `sam` asks AWS for the number of the account, and goes on without it
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_MAX_ATTEMPTS": "1",
    "SAM_CLI_TELEMETRY": "0",
}


@pytest.fixture(scope="module")
def built(checkout: Checkout) -> Iterator[Checkout]:
    """With the local S3 running and empty, and both functions' image built."""
    (checkout.directory / ".venv-sam").symlink_to(ROOT / ".venv-sam")
    os.utime(checkout.directory / "requirements-sam.txt", (0, 0))  # older than what is installed
    checkout.sh(
        "make stop; docker compose --profile s3 down --volumes; docker compose --profile s3 up -d --build --wait s3"
    )
    checkout.sh(f"{SAM} build", **ENVIRONMENT)
    yield checkout
    checkout.sh(f"{RUNNING} --all | xargs --no-run-if-empty docker rm -f; docker rmi {FUNCTION_IMAGE} function:lambda")


def test_template_is_valid(built: Checkout) -> None:
    assert "is a valid SAM Template" in built.sh(f"{SAM} validate --lint --region eu-central-1", **ENVIRONMENT)


@pytest.mark.parametrize(
    ("function", "event", "expected"),
    [
        ("Function", "function_url_create", {"statusCode": 201}),
        ("Function", "http_api_list", {"statusCode": 200}),
        ("Function", "rest_api_create", {"statusCode": 201}),
        ("Function", "alb_read_missing", {"statusCode": 404}),
        ("MaintenanceFunction", "merge", {}),
        ("MaintenanceFunction", "maintain", {}),
        ("MaintenanceFunction", "eventbridge_scheduled", {}),
    ],
)
def test_every_event_is_answered(built: Checkout, function: str, event: str, expected: dict[str, int]) -> None:
    output = built.sh(
        f"{SAM} local invoke {function} --config-env local --event tests/events/{event}.json", **ENVIRONMENT
    )
    answer = json.loads(output.splitlines()[-1])
    assert "errorMessage" not in answer
    assert {name: answer.get(name) for name in expected} == expected


def test_events_here_are_all_of_them() -> None:
    (parameters,) = [mark.args[1] for mark in getattr(test_every_event_is_answered, "pytestmark", [])]
    assert {event for _, event, _ in parameters} == {path.stem for path in EVENTS.glob("*.json")}


def test_items_survive_the_death_of_two_functions_containers(built: Checkout, start_process: StartProcess) -> None:
    """Each `sam local start-api` has a container of its own, as two instances of one function have."""
    ports = [free_port(), free_port()]
    for port in ports:
        process = start_process(
            "make", "-C", str(built.directory), "sam-local", f"SAM_PORT={port}", **{**built.environment, **ENVIRONMENT}
        )
        process.wait_for(r"Running on http://127.0.0.1:", seconds=120)
    with httpx2.Client(timeout=60, trust_env=False) as client:
        addresses = [f"http://127.0.0.1:{port}/api/items" for port in ports]

        def names(address: str) -> list[str]:
            answer = client.get(address, params={"limit": 100})
            assert answer.status_code == 200, answer.text
            return [item["name"] for item in answer.json()["items"]]

        known = names(addresses[0])
        for life in range(3):
            for number, address in enumerate(addresses):
                answer = client.post(address, json={"name": f"life {life} of {number}"})
                assert answer.status_code == 201, answer.text
                known.append(answer.json()["name"])
            running = built.sh(RUNNING).split()
            assert len(running) == 2
            # the second time as if the machine were gone
            built.sh(f"docker {'rm -f' if life == 1 else 'kill'} {' '.join(running)}")
            assert built.sh(RUNNING) == ""
            assert [names(address) for address in addresses] == [known, known]
