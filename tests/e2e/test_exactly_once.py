"""Writes that are sent again with their Idempotency-Key until they are answered, through a store that swallows every
third reply, while servers are killed; EXACTLY_ONCE_WRITES=10000 for longer.
"""

import itertools
import json
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import Server
from tests.e2e.emulator import emulating
from tests.e2e.evidence import Claims, items_in, restored_and_checked, run_together
from tests.e2e.processes import StartProcess
from tests.e2e.proxy import Forward, Proxy, Reply, Request, Rule, lost_reply, pass_on, proxy_before
from tests.e2e.stores import S3

pytestmark = pytest.mark.e2e

WRITES = int(os.environ.get("EXACTLY_ONCE_WRITES", "300"))
CLIENTS, SERVERS = max(WRITES // 100, 20), 3
ROUND_SECONDS, SILENT_SECONDS = 5.0, 1.5
WRITES_PER_KILL = max(WRITES // 50, 100)
KEY, REPEATED = "Idempotency-Key", "idempotent-replayed"


def swallowing() -> Rule:
    """Every third reply to a commit is lost, and every now and then all are, until outcomes stay unknown."""
    commits = itertools.count(1)

    def rule(request: Request, forward: Forward) -> Reply | None:
        is_away = time.monotonic() % ROUND_SECONDS < SILENT_SECONDS
        is_lost = is_away or (request.is_commit and next(commits) % 3 == 0)
        return (lost_reply if is_lost else pass_on)(request, forward)

    return rule


class Servers:
    """Any of them may be dead at any time."""

    def __init__(self, start: Callable[[int], Server]) -> None:
        self._start = start
        self._servers = [start(number) for number in range(SERVERS)]
        self.urls = [server.client.base_url for server in self._servers]

    def kill(self, number: int) -> None:
        self._servers[number].process.end(signal.SIGKILL)
        self._servers[number] = self._start(number)
        self.urls[number] = self._servers[number].client.base_url


class Patient:
    """A client that sends each write again, to whichever server, until it is answered."""

    def __init__(self, name: str, servers: Servers, claims: Claims, counts: Counter[str]) -> None:
        self._name = name
        self._servers = servers
        self._claims = claims
        self._counts = counts
        self._rng = random.Random(name)
        self._client = httpx2.Client(timeout=30, trust_env=False)

    def write_all(self, number: int) -> None:
        with self._client:
            for n in range(number):
                self._write(f"{self._name}-{n}")

    def _write(self, name: str) -> None:
        key = str(uuid.uuid4())
        while (answer := self._sent(name, key)) is None:
            pass
        if self._rng.random() < 0.2:  # the client has lost it
            while (again := self._sent(name, key)) is None:
                pass
            self._counts["repeated"] -= 1  # the others were not answered before
            assert again.headers[REPEATED] == "true"
            assert (again.content, again.headers["location"]) == (answer.content, answer.headers["location"])
        self._claims.record(name, answer.status_code, answer.json())

    def _sent(self, name: str, key: str) -> httpx2.Response | None:
        """None for whatever is no answer to rely on."""
        self._counts["requests"] += 1
        url = self._rng.choice(self._servers.urls)
        try:
            answer = self._client.post(f"{url}/api/items", json={"name": name}, headers={KEY: f'"{key}"'})
        except httpx2.HTTPError:
            self._counts["without answer"] += 1
            return None
        if answer.status_code == 503:
            self._counts[f"stored {answer.json()['stored']}"] += 1
            return None
        self._counts["repeated"] += REPEATED in answer.headers
        assert answer.status_code == 201, answer.text
        return answer


def test_each_write_is_there_once_whatever_becomes_of_its_answers(
    start_server: Callable[..., Server], bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, counts = Claims(), Counter[str]()
    with ExitStack() as stack:
        proxies = [stack.enter_context(proxy_before(bucket.endpoint)) for _ in range(SERVERS)]

        def start(number: int) -> Server:
            proxies[number].rule = pass_on  # a start needs the store, and ends without it
            server = start_server(
                **bucket.environment(proxies[number].endpoint),
                DATABASE_PATH=str(tmp_path / str(number) / "app.db"),
                COMMIT_TIMEOUT_SECONDS="1",
            )
            proxies[number].rule = swallowing()
            proxies[number].requests.clear()
            return server

        servers = Servers(start)

        def kill_now_and_then() -> None:
            for kill in range(1, WRITES // WRITES_PER_KILL + 1):
                claims.wait_for(kill * WRITES_PER_KILL - WRITES_PER_KILL // 2, 600)
                if len(claims) == WRITES // CLIENTS * CLIENTS:
                    return
                servers.kill(kill % SERVERS)
                counts["kills"] += 1

        clients = [Patient(str(number), servers, claims, counts) for number in range(CLIENTS)]
        writers = [partial(client.write_all, WRITES // CLIENTS) for client in clients]
        run_together([*writers, kill_now_and_then])
    print(len(claims), "writes:", dict(counts))
    assert len(claims.acknowledged) == WRITES // CLIENTS * CLIENTS
    assert counts["kills"]
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))


def test_another_function_answers_what_the_first_had_no_answer_for(
    start_process: StartProcess, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        proxy: Proxy = stack.enter_context(proxy_before(bucket.endpoint))
        environment = {**bucket.environment(proxy.endpoint), "COMMIT_TIMEOUT_SECONDS": "1"}
        one = stack.enter_context(emulating(start_process, **environment))
        other = stack.enter_context(emulating(start_process, **bucket.environment()))

        def post(function: Any, name: str) -> dict[str, Any]:
            return dict(function.request("POST", "/api/items", json.dumps({"name": name}), headers={KEY: f'"{name}"'}))

        assert post(one, "first")["statusCode"] == 201
        proxy.rule = store_goes_away_after_the_next_commit()
        unknown = post(one, "second")
        assert (unknown["statusCode"], json.loads(unknown["body"])["stored"]) == (503, "unknown")
        again = post(other, "second")
        assert (again["statusCode"], again["headers"][REPEATED]) == (201, "true")
        proxy.rule = pass_on
        assert post(one, "second")["body"] == again["body"]
    assert [name for _, name in items_in(restored_and_checked(bucket, tmp_path, monkeypatch))] == ["first", "second"]


def store_goes_away_after_the_next_commit() -> Rule:
    away = threading.Event()

    def rule(request: Request, forward: Forward) -> Reply | None:
        if away.is_set():
            return None
        if request.is_commit:
            away.set()
            return lost_reply(request, forward)
        return forward(request)

    return rule
