"""Many instances of the function write one log, and are killed while they do."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.emulator import Emulator, emulating
from tests.e2e.evidence import Claims, restored_and_checked, run_together
from tests.e2e.processes import StartProcess
from tests.e2e.stores import S3, bucket_at

pytestmark = pytest.mark.e2e

INSTANCES = 8
WRITES = int(os.environ.get("COMMIT_LOG_WRITES", "800"))  # for each store
KILLS = max(WRITES // 50, 5)

StartEmulator = Callable[..., Emulator]


@pytest.fixture(params=["ministack_endpoint", "locked_moto_endpoint"])
def store(request: pytest.FixtureRequest) -> Iterator[S3]:
    with bucket_at(request.getfixturevalue(request.param)) as bucket:
        yield bucket


@pytest.fixture
def start_emulator(start_process: StartProcess) -> Iterator[StartEmulator]:
    with ExitStack() as stack:
        yield lambda **environment: stack.enter_context(emulating(start_process, **environment))


class Instance:
    """An emulator, and whether it is in the middle of a request."""

    def __init__(self, emulator: Emulator, claims: Claims) -> None:
        self.emulator = emulator
        self.busy = threading.Event()
        self._claims = claims

    def write(self, name: str) -> None:
        self.busy.set()
        try:
            answer = self.emulator.request("POST", "/api/items", json.dumps({"name": name}))
        finally:
            self.busy.clear()
        # Without a status code it is the emulator that answers: the runtime died
        self._claims.record(name, answer.get("statusCode", 0), json.loads(answer.get("body") or "{}"))

    def write_all(self, prefix: str, number: int) -> None:
        for n in range(number):
            self.write(f"{prefix}-{n}")


def kill_now_and_then(instances: list[Instance], claims: Claims, rng: random.Random) -> None:
    """In the middle of requests, spread over the whole run."""
    for kill in range(KILLS):
        claims.wait_for(WRITES * (kill + 1) // (KILLS + 2))
        instance = rng.choice(instances)
        while not (instance.busy.wait(5) and instance.emulator.signal_runtime(signal.SIGKILL)):
            instance = rng.choice(instances)


def test_acknowledged_writes_of_killed_instances_are_there_exactly_once(
    store: S3, start_emulator: StartEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print("SEED", seed)
    claims = Claims()
    instances = [Instance(start_emulator(**store.environment()), claims) for _ in range(INSTANCES)]
    writers = [
        partial(instance.write_all, str(number), WRITES // INSTANCES) for number, instance in enumerate(instances)
    ]
    run_together([*writers, partial(kill_now_and_then, instances, claims, random.Random(seed))])
    print(len(claims.acknowledged), "acknowledged,", len(claims.unknown), "unknown,", len(claims.refused), "refused")
    assert len(claims.acknowledged) > WRITES * 0.8
    claims.check(restored_and_checked(store, tmp_path, monkeypatch))
