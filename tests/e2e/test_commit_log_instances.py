"""Many instances of the function write one log, and are killed while they do."""

import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.e2e.emulator import Emulator, emulating
from tests.e2e.evidence import Claims, restored_and_checked, run_together
from tests.e2e.processes import StartProcess
from tests.e2e.proxy import Gate, pass_on, proxy_before
from tests.e2e.stores import S3, bucket_at

pytestmark = pytest.mark.e2e

INSTANCES = 8
WRITES = int(os.environ.get("COMMIT_LOG_WRITES", "1000"))
SHARES = {"ministack_endpoint": 0.7, "locked_moto_endpoint": 0.3}  # moto is much slower
TIME_LIMIT = {"AWS_LAMBDA_FUNCTION_TIMEOUT": "20"}  # then the emulator answers for a runtime that does not

StartEmulator = Callable[..., Emulator]


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
        except (httpx2.HTTPError, ValueError) as error:  # a kill may leave the emulator without any answer
            print(name, repr(error), *self.emulator.process.lines[-10:], sep="\n")
            answer = {}
        finally:
            self.busy.clear()
        # Without a status code it is the emulator that answers: the runtime died
        self._claims.record(name, answer.get("statusCode", 0), json.loads(answer.get("body") or "{}"))

    def write_all(self, prefix: str, number: int) -> None:
        for n in range(number):
            self.write(f"{prefix}-{n}")


def kill_now_and_then(instances: list[Instance], claims: Claims, rng: random.Random, writes: int) -> None:
    """In the middle of requests, spread over the whole run."""
    kills = max(writes // 50, 5)
    for kill in range(kills):
        claims.wait_for(writes * (kill + 1) // (kills + 2))
        for instance in rng.sample(instances, len(instances)):
            if instance.busy.wait(5) and instance.emulator.signal_runtime(signal.SIGKILL):
                break


@pytest.mark.parametrize("store", SHARES)
def test_acknowledged_writes_of_killed_instances_are_there_exactly_once(
    store: str,
    request: pytest.FixtureRequest,
    start_emulator: StartEmulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print("SEED", seed)
    writes = int(WRITES * SHARES[store])
    claims = Claims()
    with bucket_at(request.getfixturevalue(store)) as bucket:
        instances = [Instance(start_emulator(**bucket.environment(), **TIME_LIMIT), claims) for _ in range(INSTANCES)]
        writers = [
            partial(instance.write_all, str(number), writes // INSTANCES) for number, instance in enumerate(instances)
        ]
        run_together([*writers, partial(kill_now_and_then, instances, claims, random.Random(seed), writes)])
        print(
            len(claims.acknowledged), "acknowledged,", len(claims.unknown), "unknown,", len(claims.refused), "refused"
        )
        assert len(claims.acknowledged) > writes * 0.8
        claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))


@pytest.mark.parametrize("applied", [False, True], ids=["before the store has it", "before the reply arrives"])
def test_instance_frozen_in_the_middle_of_a_commit_neither_loses_nor_repeats_it(
    applied: bool, bucket: S3, start_emulator: StartEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims()
    with proxy_before(bucket.endpoint) as proxy:
        frozen = Instance(start_emulator(**bucket.environment(proxy.endpoint)), claims)
        other = Instance(start_emulator(**bucket.environment()), claims)
        frozen.write("first")
        for pause in (0.0, 6.0):  # the longer one outlasts the time-out of a PUT
            proxy.rule = gate = Gate(after=applied)
            thread = threading.Thread(target=frozen.write, args=(f"held back {pause}",))
            thread.start()
            assert gate.reached.wait(30)
            frozen.emulator.signal_runtime(signal.SIGSTOP)
            started = time.monotonic()
            for number in itertools.count():
                if number >= 20 and time.monotonic() - started >= pause:
                    break
                other.write(f"{pause} {number}")
            gate.open()
            proxy.rule = pass_on
            frozen.emulator.signal_runtime(signal.SIGCONT)
            thread.join(60)
            frozen.write(f"afterwards {pause}")
    assert (claims.unknown, claims.refused) == (set(), set())
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))
