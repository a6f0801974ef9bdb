"""Makes trouble for a round, one thing after the other, from a seed; and writes down what it did and when."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.checker.checks import SHELL
from tests.checker.history import History, Window
from tests.checker.proxy import Proxy
from tests.checker.servers import Server
from tests.checker.store import LogPlace

_INSERT = (
    "INSERT INTO items (name, price_cents, quantity, created_at, updated_at, version) "
    "VALUES ('{name}', 0, 0, '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z', 1);"
)
_SHELL_WORK = [
    "{insert}",
    "{insert}",
    "BEGIN IMMEDIATE; {insert} COMMIT;",
    "{insert} PRAGMA wal_checkpoint(TRUNCATE);",
    "{insert} VACUUM;",
    "{insert} REINDEX;",
]
_WEATHER = [(0.0, 0.0), (0.05, 0.02), (0.3, 0.1), (0.5, 0.0), (0.1, 0.3)]  # the share of commits, and of other requests
_DAY = 86_400.0
_BETWEEN_TRIES = 1.0  # seconds; the last one may be so much later than the commit's time-out


@dataclass(slots=True)
class World:
    """What there is to trouble."""

    servers: list[Server]
    proxies: list[Proxy]  # one for each server, or none
    place: LogPlace
    commit_timeout: float


class Nemesis:
    def __init__(self, world: World, history: History, rng: random.Random, deeds: list[str], label: str) -> None:
        """`deeds`: names of methods; one that is there twice is done twice as often."""
        self.counts: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self._world = world
        self._history = history
        self._random = rng
        self._label = label
        self._deeds: list[Callable[[], None]] = [getattr(self, name) for name in deeds]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """When this returns, nothing is held back, paused or taken away any more."""
        self._stop.set()
        self._thread.join()
        for proxy in self._world.proxies:
            proxy.heal()
        if self.errors:
            raise self.errors[0]

    def _run(self) -> None:
        try:
            for deed in self._in_turns():
                if self._stop.wait(self._random.uniform(0.3, 1.2)):
                    return
                for server in self._world.servers:
                    server.start()  # one that found no store when it started has ended
                self.counts[deed.__name__] += 1
                deed()
        except BaseException as error:
            self.errors.append(error)

    def _in_turns(self) -> Iterator[Callable[[], None]]:
        """Every deed, in an order of its own, then every one again."""
        while self._deeds:
            yield from self._random.sample(self._deeds, len(self._deeds))

    def _note(self, text: str) -> None:
        self._history.note(time.monotonic(), text)

    def _one(self) -> Server:
        return self._random.choice(self._world.servers)

    def _wait(self, low: float, high: float) -> None:
        self._stop.wait(self._random.uniform(low, high))

    # Processes

    def kill(self) -> None:
        server = self._one()
        self._note(f"kill -9 of {server.name}")
        server.kill()
        self._wait(0, 1)
        server.start()

    def stop_and_start(self) -> None:
        server = self._one()
        self._note(f"stop of {server.name}")
        self._note(f"{server.name} ended with {server.stop()}")
        server.start()

    def wipe(self) -> None:
        """A new instance in its place, that knows nothing."""
        server = self._one()
        self._note(f"kill -9 of {server.name}, its files removed")
        server.kill()
        for path in server.directory.glob("app.db*"):
            path.unlink()
        server.start()

    def pause(self) -> None:
        server = self._one()
        self._note(f"{server.name} paused")
        server.pause()
        self._wait(0.2, 4)
        server.resume()
        self._note(f"{server.name} goes on")

    # Clocks

    def sleep(self) -> None:
        """As a machine that was suspended before anybody has told it the time: both clocks stood still."""
        server = self._one()
        self._note(f"{server.name} sleeps")
        begin = time.monotonic()
        server.pause()
        time.sleep(self._random.uniform(1.1, 6))  # another second has begun, in which libfaketime looks again
        slept = time.monotonic() - begin
        server.move_clocks(-slept, -slept)
        server.resume()
        self._history.windows.append(Window("asleep", begin, time.monotonic(), server.number))
        self._note(f"{server.name} goes on, its clocks {slept:.1f} s late")

    def leap(self) -> None:
        server = self._one()
        wall = self._random.choice([-25 / 24 * _DAY, -30, 30, 400, 25 / 24 * _DAY])
        monotonic = self._random.choice([0.0, max(0.0, wall)])
        self._note(f"{server.name}: the wall clock leaps by {wall:.0f} s, the monotonic one by {monotonic:.0f} s")
        server.move_clocks(wall, monotonic)

    # Network and store

    def weather(self) -> None:
        for proxy in self._world.proxies:
            proxy.weather = self._random.choice(_WEATHER)
        self._note(f"weather: {[proxy.weather for proxy in self._world.proxies]}")
        self._wait(0.5, 2)

    def black_out(self) -> None:
        """The next commit of a server is stored, its connection is reset, and then nobody answers until it gives up."""
        proxy = self._random.choice(self._world.proxies)
        others = self._random.choice([[proxy], self._world.proxies])
        seconds = self._world.commit_timeout + _BETWEEN_TRIES + self._random.uniform(0.3, 1)
        self._note(f"blackout of {len(others)} for {seconds:.1f} s after the next commit through port {proxy.port}")
        proxy.black_out_after_commit(others, seconds)
        patience = time.monotonic() + 3
        while proxy.is_armed and time.monotonic() < patience:
            self._wait(0.05, 0.05)
        self._wait(seconds, seconds + 0.5)

    def go_dark(self) -> None:
        proxy = self._random.choice(self._world.proxies)
        self._note(f"port {proxy.port} is dark")
        proxy.go_dark(self._random.uniform(0.1, self._world.commit_timeout + 1))

    def empty(self) -> None:
        """The log's objects are taken away, and come back after a while."""
        begin = time.monotonic()
        self._note("the prefix is being emptied")
        with self._nothing_passes():
            self._world.place.empty()
        emptied = time.monotonic()
        if self._world.place.is_empty():
            self._wait(2.5, 4)
            self._history.windows.append(Window("empty", emptied, time.monotonic()))
        with self._nothing_passes():
            self._world.place.put_back()
        self._history.windows.append(Window("moving", begin, time.monotonic()))
        self._note(f"the prefix is back; it was empty from {emptied}")
        self._wait(2, 4)

    @contextmanager
    def _nothing_passes(self) -> Iterator[None]:
        """Nobody sees the half of it: no log keeps its promises while its objects come back one by one."""
        for proxy in self._world.proxies:
            proxy.is_shut = True
        self._wait(0.3, 0.5)  # for what is on its way
        try:
            yield
        finally:
            for proxy in self._world.proxies:
                proxy.is_shut = False

    # Other programs

    def shell(self) -> None:
        server = self._one()
        name = f"{SHELL}{self._label}-{self.counts['shell']:04}"
        work = self._random.choice(_SHELL_WORK).format(insert=_INSERT.format(name=name))
        if server.shell(work):
            self._history.shell.append((server.number, name))
            self._note(f"a shell committed {name} at {server.name}")

    def maintain(self) -> None:
        server = self._one()
        self._note(f"maintenance at {server.name}")
        self._note(f"maintenance ended with {server.maintain(15)}")
