"""Callers: each is a thread that sends one request after the other, to this server or that, and notes the answers."""

import http.client
import itertools
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from tests.checker.history import History, Operation, Row
from tests.checker.servers import Server

_TIMEOUT = 25.0  # seconds; longer than a server may take for a write
_PATIENCE = 4.0  # the same for a read: who gives one up loses nothing, and goes on to another server
_IDLE = 3.0  # seconds; less than a server keeps a connection on which nothing comes
_BATCH = 15  # names that begin alike: they fit on a page
_FIRST_TRIES = 30
_HEADER = "X-Commit-Txid"


class Client:
    """Its connections, one to each server."""

    def __init__(self, name: str, history: History, servers: Sequence[Server] | Mapping[int, Server]) -> None:
        self.name = name
        self.history = history
        self.servers = servers
        self._connections: dict[int, tuple[http.client.HTTPConnection, float]] = {}  # and when they were last used

    def create(self, server: Server, name: str, sent: int = 0, quantity: int = 1) -> Operation:
        operation = self._operation("create" if quantity >= 0 else "invalid", server, value=name, sent=sent)
        return self._send(operation, "POST", "/api/items", {"name": name, "quantity": quantity})

    def patch(self, server: Server, item: int, value: str, sent: int = 0) -> Operation:
        operation = self._operation("patch", server, value=value, item=item, sent=sent)
        return self._send(operation, "PATCH", f"/api/items/{item}", {"description": value, "quantity": len(value)})

    def delete(self, server: Server, item: int) -> Operation:
        operation = self._operation("delete", server, item=item)
        return self._send(operation, "DELETE", f"/api/items/{item}")

    def read(self, server: Server, item: int, sent: int = 0) -> Operation:
        return self._send(self._operation("item", server, item=item, sent=sent), "GET", f"/api/items/{item}")

    def search(self, server: Server, q: str, sent: int = 0, order: str = "created_at") -> Operation:
        operation = self._operation("list", server, q=q, sent=sent)
        return self._send(operation, "GET", f"/api/items?q={quote(q)}&limit=100&order={order}")

    def all_rows(self, server: Server, sent: int, pages: int) -> list[Row] | None:
        """Every item, page by page; None when the server does not answer as it should. No part of the history.

        Raises OSError when it does not listen.
        """
        rows: list[Row] = []
        path = "/api/items?limit=100"
        for _ in range(pages):
            status, _, body = self._exchange(server, "GET", path, None, sent)
            if status != 200:
                return None
            rows += map(_row, body["items"])
            if not body["next_cursor"]:
                break
            path = f"/api/items?limit=100&cursor={quote(body['next_cursor'])}"
        return sorted(rows)

    def close(self) -> None:
        for connection, _ in self._connections.values():
            connection.close()
        self._connections.clear()

    def _operation(self, kind: str, server: Server, **rest: Any) -> Operation:
        return Operation(kind, self.name, server.number, server.freshness, **rest)

    def _send(self, operation: Operation, method: str, path: str, body: object = None) -> Operation:
        """What found no connection sent nothing, and is not part of the history."""
        server = self.servers[operation.server]
        operation.invoked = time.monotonic()
        try:
            operation.status, operation.token, answer = self._exchange(server, method, path, body, operation.sent)
        except OSError:
            operation.stored = "not sent"
            time.sleep(0.05)
            return operation
        operation.returned = time.monotonic()
        operation.stored = str(answer.get("stored", ""))
        operation.named = _txid(answer.get("txid"))
        if "items" in answer:
            operation.rows = list(map(_row, answer["items"]))
        elif "version" in answer:
            operation.rows = [_row(answer)]
        self.history.add(operation)
        return operation

    def _exchange(
        self, server: Server, method: str, path: str, body: object, sent: int
    ) -> tuple[int, int, dict[str, Any]]:
        """Status (0: no whole answer), the answer's TXID, its body. Raises OSError without a connection."""
        connection = self._connected(server)
        connection.sock.settimeout(_PATIENCE if method == "GET" else _TIMEOUT)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if sent:
            headers[_HEADER] = f"{sent:016x}"
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return 0, 0, {}
        self._connections[server.number] = connection, time.monotonic()
        is_json = "json" in response.headers.get("Content-Type", "")
        return response.status, _txid(response.headers.get(_HEADER)), json.loads(content) if is_json else {}

    def _connected(self, server: Server) -> http.client.HTTPConnection:
        """Not one that the server may have closed because nothing came: that would be an answer lost for nothing."""
        connection, used = self._connections.pop(server.number, (None, 0.0))
        if connection and connection.sock and time.monotonic() - used < _IDLE:  # none after "Connection: close"
            return connection
        if connection:
            connection.close()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT)
        connection.connect()
        return connection


class Crowd:
    """The callers of a round, with what they tell each other: tokens, names, items."""

    def __init__(self, history: History, servers: list[Server], rng: random.Random, label: str) -> None:
        self._history = history
        self._servers = servers
        self._random = rng
        self._label = label
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._tokens: deque[int] = deque(maxlen=12)
        self._queries: deque[str] = deque(maxlen=12)
        self._deletable: deque[int] = deque()
        self._registers: list[int] = []
        self.pause = 0.0  # seconds between two requests of a caller
        self.rest = 0.0  # the same of the one who changes one item at one server: it leaves the others their turns
        self.errors: list[BaseException] = []

    def start(self, registers: int = 3) -> None:
        """Raises RuntimeError when nobody takes the first writes."""
        first = Client("first", self._history, self._servers)
        for number in range(_FIRST_TRIES):
            made = first.create(self._servers[number % len(self._servers)], f"{self._label}-register-{number}")
            if made.is_acknowledged:
                self._registers.append(made.rows[0].id)
            if len(self._registers) == registers:
                break
        else:
            raise RuntimeError(f"the first writes are not taken: {made}")
        first.close()
        roles: list[Callable[[Client, random.Random], None]] = [
            self._hammer,
            *[self._watch] * 3,
            *[self._keep_lists] * 2,
            *[self._wander] * 5,
        ]
        for number, role in enumerate(roles):
            client = Client(f"{role.__name__.strip('_')}-{number}", self._history, self._servers)
            rng = random.Random(self._random.getrandbits(64))
            self._threads.append(threading.Thread(target=self._run, args=(role, client, rng), daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _TIMEOUT)
        if self.errors:
            raise self.errors[0]

    @property
    def newest_token(self) -> int:
        return max((operation.token for operation in self._history.operations), default=0)

    def _run(self, role: Callable[[Client, random.Random], None], client: Client, rng: random.Random) -> None:
        try:
            role(client, rng)
        except BaseException as error:
            self.errors.append(error)
        finally:
            client.close()

    def _tell(self, operation: Operation) -> Operation:
        if operation.token and operation.status < 500:
            self._tokens.append(operation.token)
        return operation

    def _token(self, rng: random.Random) -> int:
        with suppress(IndexError):
            return rng.choice(self._tokens) if rng.random() < 0.5 else 0
        return 0

    def _each(self) -> Iterator[int]:
        return itertools.takewhile(lambda _: not self._stop.wait(self.pause), itertools.count())

    # What a caller does

    def _hammer(self, client: Client, rng: random.Random) -> None:
        """Changes one item at one server, as fast as that answers, or nearly."""
        for number in self._each():
            self._stop.wait(self.rest)
            self._tell(client.patch(self._servers[0], self._registers[0], f"{self._label} hammer {number}"))

    def _watch(self, client: Client, rng: random.Random) -> None:
        """Reads that item there, and takes the answer's token to another server."""
        for _ in self._each():
            seen = self._tell(client.read(self._servers[0], self._registers[0]))
            if rng.random() < 0.2:
                client.read(rng.choice(self._servers), self._registers[0], seen.token if seen.status < 500 else 0)

    def _keep_lists(self, client: Client, rng: random.Random) -> None:
        """Creates items whose names begin alike, reads them back elsewhere, deletes one now and then."""
        for number in self._each():
            batch = f"{self._label}-{client.name}-{number // _BATCH:03}-"
            self._queries.append(batch)
            made = self._tell(
                client.create(rng.choice(self._servers), f"{batch}{number % _BATCH:02}", self._token(rng))
            )
            if made.is_unknown:
                self._look_after(client, rng, batch)
            elif made.is_acknowledged and rng.random() < 0.3:
                self._deletable.append(made.rows[0].id)
            elsewhere = rng.choice(self._servers)
            self._tell(client.search(elsewhere, batch, made.token if made.is_acknowledged else 0))

    def _look_after(self, client: Client, rng: random.Random, batch: str) -> None:
        """As the answer asks for: read before you try again."""
        for server in rng.sample(self._servers, len(self._servers)):
            client.search(server, batch, order=rng.choice(["created_at", "-created_at"]))

    def _wander(self, client: Client, rng: random.Random) -> None:
        """Everything, everywhere."""
        for number in self._each():
            server = rng.choice(self._servers)
            sent = self._token(rng)
            name = f"{self._label} {client.name} {number}"
            match rng.randrange(10):
                case 0 | 1:
                    self._tell(client.patch(server, rng.choice(self._registers), name, sent))
                case 2:
                    client.create(server, name, sent, quantity=-1)
                case 3 if self._deletable:
                    with suppress(IndexError):
                        item = self._deletable.popleft()
                        self._tell(client.delete(server, item))
                        self._tell(client.read(rng.choice(self._servers), item))
                case 4 | 5 | 6 if self._queries:
                    self._tell(client.search(server, rng.choice(self._queries), sent))
                case _:
                    self._tell(client.read(server, rng.choice(self._registers), sent))


def _row(item: dict[str, Any]) -> Row:
    return Row(item["id"], item["name"], item["description"], item["quantity"], item["version"])


def _txid(value: object) -> int:
    """A TXID as a header or a problem has it, in hexadecimal digits; 0 for none."""
    return int(value, 16) if isinstance(value, str) else 0
