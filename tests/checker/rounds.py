"""A round: some servers on one log, callers, trouble; then peace, and everything is held against everything."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.checker.checks import SHELL, Violation, violations
from tests.checker.clients import Client, Crowd
from tests.checker.commits import Log, read_log, rows_of
from tests.checker.history import History, Row
from tests.checker.nemesis import Nemesis, World
from tests.checker.proxy import Proxy
from tests.checker.servers import Server
from tests.checker.store import Bucket, Directory, LogPlace
from tests.e2e.processes import free_port

_START_SECONDS = 40.0
_PEACE_SECONDS = 40.0
_DEFAULT_FRESHNESS = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    servers: int
    seconds: float  # of load, when there is time for it
    deeds: list[str]
    directory: bool = False
    commit_timeout: float = 2.0
    maintenance: int = 0
    moves_clocks: bool = False
    pause: float = 0.0  # seconds of each caller between two requests
    rest: float = 0.04  # the same of the one who changes one item all the time


PLANS = [
    Plan("calm", 2, 8, [], rest=0.0),
    Plan("network", 3, 22, ["black_out"] * 3 + ["weather", "go_dark"]),
    Plan("processes", 4, 20, ["kill"] * 2 + ["wipe", "stop_and_start", "pause", "weather"], maintenance=3),
    Plan("directory", 3, 18, ["kill"] * 2 + ["shell"] * 3 + ["pause", "maintain"], directory=True),
    Plan("emptied", 3, 20, ["empty"] * 2 + ["pause"], pause=0.01),
    Plan("clocks", 3, 20, ["sleep"] * 3 + ["leap"] * 2 + ["black_out", "weather"], moves_clocks=True, maintenance=5),
    Plan("shell", 2, 18, ["shell"] * 4 + ["kill", "stop_and_start", "weather"], pause=0.01),
    Plan("directory, emptied", 2, 16, ["empty"] * 2 + ["pause"], directory=True, pause=0.01),
    Plan(
        "everything",
        4,
        30,
        ["black_out", "weather", "weather", "go_dark", "kill", "kill", "pause", "sleep", "leap", "shell", "maintain"],
        moves_clocks=True,
        maintenance=5,
    ),
]


@dataclass(slots=True)
class Outcome:
    plan: Plan
    history: History
    seconds: float = 0.0
    commits: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # what the nemesis did
    faults: Counter[str] = field(default_factory=Counter)  # what the proxies did
    violations: list[Violation] = field(default_factory=list)

    def line(self) -> str:
        operations = self.history.operations
        acknowledged = sum(operation.is_acknowledged for operation in operations)
        unknown = sum(operation.is_unknown for operation in operations)
        no = sum(operation.is_write and operation.stored == "no" for operation in operations)
        deeds = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        return (
            f"{self.plan.name}: {self.seconds:.0f} s, {len(operations)} operations, {acknowledged} acknowledged, "
            f"{unknown} unknown, {no} no, {self.commits} commits, {sum(self.faults.values())} faults; "
            f"{deeds or 'no trouble'}; {len(self.violations)} violations"
        )


def run_round(
    plan: Plan, number: int, code: Path, directory: Path, endpoint: str, rng: random.Random, seconds: float
) -> Outcome:
    """`seconds` of load; whatever happens, no process of it is left."""
    outcome = Outcome(plan, History())
    place = _place(plan, number, directory, endpoint)
    with ExitStack() as stack:
        stack.enter_context(closing(place))
        world = stack.enter_context(_world(plan, code, directory, place, endpoint, rng))
        began = time.monotonic()
        if _wait_until(lambda: all(_answers(server, 0) for server in world.servers), _START_SECONDS):
            _trouble(outcome, world, number, rng, seconds)
            outcome.violations += _judge(outcome, world, directory)
        else:
            outcome.violations += _not_serving(world, "at the start")
        outcome.seconds = time.monotonic() - began
    return outcome


def _trouble(outcome: Outcome, world: World, number: int, rng: random.Random, seconds: float) -> None:
    label = f"r{number:03}"
    crowd = Crowd(outcome.history, world.servers, random.Random(rng.getrandbits(64)), label)
    crowd.pause, crowd.rest = outcome.plan.pause, outcome.plan.rest
    nemesis = Nemesis(world, outcome.history, random.Random(rng.getrandbits(64)), outcome.plan.deeds, label)
    crowd.start()
    nemesis.start()
    try:
        _pass(seconds, lambda: bool(crowd.errors or nemesis.errors))
    finally:
        try:
            nemesis.stop()
        finally:
            crowd.stop()
    outcome.counts = nemesis.counts
    outcome.faults = sum((proxy.faults for proxy in world.proxies), Counter[str]())
    _wait_until(lambda: not any(proxy.held for proxy in world.proxies), 3 * world.commit_timeout)


def _judge(outcome: Outcome, world: World, directory: Path) -> list[Violation]:
    """Wait for peace, end every server, and compare: answers, files, log, and what Litestream makes of it."""
    head = world.place.head()  # perhaps of a write that arrived late, and that no answer has named
    found: list[Violation] = []
    if not _wait_until(lambda: _all_serve(world.servers, head), _PEACE_SECONDS):
        found += _not_serving(world, "in the end")
    answers = {server.name: _rows_by_api(server, head) for server in world.servers if server.is_alive}
    for server in world.servers:
        server.stop()
    log = read_log(world.place.commits())
    if log.trouble:
        found.append(Violation("broken log", log.trouble))
    outcome.commits = log.last
    files = {f"the file of {server.name}": server.rows() for server in world.servers if server.database.exists()}
    found += _differences({**answers, **files}, log)
    found += _by_litestream(world.place, log, directory)
    found += [Violation("overwritten", f"{key} was written more than once") for key in world.place.written_again()]
    found += _shell_lost(outcome.history, world.servers, log)
    return found + violations(outcome.history, log)


def _differences(found_rows: dict[str, list[Row] | None], log: Log) -> list[Violation]:
    """A shell's rows may be on their way from one server to another still."""
    expected = _without_shell(log.rows.values())
    found = []
    for name, rows in found_rows.items():
        if rows is None:
            continue  # said already: it does not serve
        differing = sorted(_without_shell(rows) ^ expected, key=str)
        if differing:
            found.append(Violation("differs", f"{name} and the log differ in {len(differing)} rows: {differing[:4]}"))
    return found


def _without_shell(rows: Iterable[Row]) -> set[Row]:
    return {row for row in rows if not row.name.startswith(SHELL)}


def _by_litestream(place: LogPlace, log: Log, directory: Path) -> list[Violation]:
    target = directory / "litestream.db"
    if complaint := place.restore(target):
        return [Violation("litestream", complaint)]
    differing = set(rows_of(target)) ^ set(log.rows.values())
    return [Violation("litestream", f"its restore differs in {sorted(differing, key=str)[:4]}")] if differing else []


def _shell_lost(history: History, servers: list[Server], log: Log) -> list[Violation]:
    """What a shell has committed is in the log, or in a file that was kept."""
    names = {row.name for row in log.rows.values()}
    return [
        Violation("shell's work lost", f"{name}, committed to the file of {servers[number].name}, is nowhere")
        for number, name in history.shell
        if name not in names and not servers[number].keeps(name)
    ]


def _not_serving(world: World, when: str) -> list[Violation]:
    return [
        Violation("does not serve", f"{server.name} {when}; its last words:\n{server.last_words()}")
        for server in world.servers
        if not _answers(server, 0)
    ]


# Servers and their store


def _place(plan: Plan, number: int, directory: Path, endpoint: str) -> LogPlace:
    if plan.directory:
        return Directory(directory / "log")
    return Bucket(endpoint, f"round-{number}")


@contextmanager
def _world(
    plan: Plan, code: Path, directory: Path, place: LogPlace, endpoint: str, rng: random.Random
) -> Iterator[World]:
    """Starts the servers: the first has the default freshness or none, by the seed, and the others take turns."""
    world = World([], [], place, plan.commit_timeout)
    lazy = rng.randrange(2)
    settings = {
        "COMMIT_TIMEOUT_SECONDS": str(plan.commit_timeout),
        "MAINTENANCE_INTERVAL_SECONDS": str(plan.maintenance),
        "LOG_LEVEL": "WARNING",
    }
    try:
        for number in range(plan.servers):
            if not plan.directory:
                world.proxies.append(Proxy(endpoint, free_port(), random.Random(rng.getrandbits(64))))
                world.proxies[-1].patience = plan.commit_timeout
            through = world.proxies[-1].endpoint if world.proxies else ""
            world.servers.append(
                Server(
                    number,
                    code,
                    directory / f"server-{number}",
                    free_port(),
                    _DEFAULT_FRESHNESS if number % 2 == lazy else 0.0,
                    place.environment(through) | settings,
                    plan.moves_clocks,
                )
            )
            world.servers[-1].start()
        yield world
    finally:
        for server in world.servers:
            server.kill()
        for proxy in world.proxies:
            proxy.close()


def _all_serve(servers: list[Server], token: int) -> bool:
    for server in servers:
        server.start()
    return all(_answers(server, token) for server in servers)


def _answers(server: Server, token: int) -> bool:
    return server.is_alive and _rows_by_api(server, token, 1) is not None


def _rows_by_api(server: Server, token: int, pages: int = 1_000_000) -> list[Row] | None:
    """None when it does not answer as it should."""
    client = Client("auditor", History(), {server.number: server})
    try:
        return client.all_rows(server, token, pages)
    except OSError:
        return None
    finally:
        client.close()


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _pass(seconds: float, interrupted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not interrupted():
        time.sleep(0.05)
