"""One thing at a time, in virtual time, in an order that a seed decides.

Every actor runs in a thread of its own, but only the one that has the baton; it hands it back at each pause.
"""

import hashlib
import heapq
import random
import threading
from collections import deque
from collections.abc import Callable
from itertools import count

from infra.clock import Clock

EPOCH = 1_700_000_000  # seconds since 1970: when every simulation begins
_MICRO = 1_000_000
_MOST_EVENTS = 300_000
_TRACE_KEPT = 60


class Violation(Exception):
    """An invariant does not hold. The message begins with its name."""


class Crash(BaseException):
    """The process of this thread has been killed: nothing may catch this."""


class Scheduler:
    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        """`tell` gets every line of the trace."""
        self.seed = seed
        self.rng = random.Random(seed)
        self.trace: deque[str] = deque(maxlen=_TRACE_KEPT)
        self.failure: BaseException | None = None
        self.running: Task | None = None
        self.back = threading.Lock()
        self.back.acquire()
        self._tell = tell
        self._digest = hashlib.sha256()
        self._micros = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()
        self._tasks: list[Task] = []

    def now(self) -> float:
        """Seconds of virtual time; no two calls get the same."""
        self._micros += 1
        return self._micros / _MICRO

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Run an action, on the scheduler's thread, in `delay` seconds."""
        heapq.heappush(self._events, (self._micros + int(delay * _MICRO) + 1, next(self._numbers), action))

    def run(self) -> None:
        """Until nothing is due any more. Raises what `fail` was told."""
        for _ in range(_MOST_EVENTS):
            if self.failure:
                raise self.failure
            if not self._events:
                return
            due, _, action = heapq.heappop(self._events)
            self._micros = max(self._micros, due)
            action()
        raise Violation(f"liveness: there is still something to do after {_MOST_EVENTS} events")

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error

    def say(self, actor: str, event: str) -> None:
        line = f"{self._micros / _MICRO:16.6f} {actor:<6} {event}"
        self._digest.update(line.encode())
        self.trace.append(line)
        if self._tell:
            self._tell(line)

    def digest(self) -> str:
        """Of the trace: two runs with the same one went the same way."""
        return self._digest.hexdigest()

    def start(self, body: Callable[["Task"], None]) -> "Task":
        task = Task(self, body)
        self._tasks = [task for task in self._tasks if not task.ended]
        self._tasks.append(task)
        self.at(0, task.resume)
        return task

    def stop(self) -> None:
        """Kill what is left, so that no thread outlives the simulation."""
        for task in self._tasks:
            task.kill()


class Task:
    """A thread that runs only between `resume` and its next pause."""

    def __init__(self, scheduler: Scheduler, body: Callable[["Task"], None]) -> None:
        self.ended = False
        self._dead = False
        self._scheduler = scheduler
        self._body = body
        self._go = threading.Lock()
        self._go.acquire()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """On the scheduler's thread: hand over the baton and get it back."""
        if not self.ended:
            self._scheduler.running = self
            self._go.release()
            self._scheduler.back.acquire()
            self._scheduler.running = None

    def pause(self, seconds: float) -> None:
        """On the task's thread. Raises Crash when the process was killed."""
        self.check_alive()
        self._scheduler.at(seconds, self.resume)
        self.wait()

    def wait(self) -> None:
        """Until somebody calls `resume`."""
        self.check_alive()
        self._scheduler.back.release()
        self._go.acquire()
        self.check_alive()

    def check_alive(self) -> None:
        if self._dead:
            raise Crash

    def die(self) -> None:
        """On the task's thread: whatever it still does on its way out, it gets no further pause."""
        self._dead = True
        raise Crash

    def kill(self) -> None:
        self._dead = True
        self.resume()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.check_alive()
            self._body(self)
        except Crash:
            pass
        except BaseException as error:  # carried to the scheduler's thread, which raises it
            if not self._dead:  # or SQLite has made an error of its own of Crash
                self._scheduler.fail(error)
        finally:
            self.ended = True
            self._scheduler.back.release()


class SimulatedClock(Clock):
    """One machine's clock, which may stand still and leap. `skew`: seconds by which its wall clock is wrong."""

    def __init__(self, scheduler: Scheduler, skew: float, pause: Callable[[float], None]) -> None:
        self.skew = skew
        self._scheduler = scheduler
        self._pause = pause
        self._made = scheduler.now()
        self._offsets = [(self._made, -self._made)]  # from a moment of virtual time on: what to add to it
        self._stopped: list[tuple[float, float]] = []  # from, to

    def now(self) -> float:
        return self.at(self._scheduler.now())

    def at(self, moment: float) -> float:
        """What this clock showed, or would have shown, at a moment of virtual time."""
        for start, end in self._stopped:
            if start <= moment < end:
                moment = start
        return moment + next(
            offset for since, offset in reversed(self._offsets) if since <= moment or since == self._made
        )

    def earliest(self, shown: float) -> float:
        """The moment of virtual time at which it showed this first, or more."""
        for (since, offset), (until, _) in zip(self._offsets, [*self._offsets[1:], (float("inf"), 0.0)], strict=True):
            if shown < until + offset:
                return max(since, shown - offset)
        raise AssertionError("unreachable")

    def stand_still(self, seconds: float) -> None:
        """From now on, as in a virtual machine that is paused; the wall clock stays behind."""
        now = self._scheduler.now()
        self._stopped.append((now, now + seconds))
        self._offsets.append((now + seconds, self._offsets[-1][1] - seconds))
        self.skew -= seconds

    def leap(self, seconds: float) -> None:
        """Somebody sets the wall clock; back, that is no step of the time that passes."""
        self.skew += seconds
        if seconds > 0:
            self._offsets.append((self._scheduler.now(), self._offsets[-1][1] + seconds))

    def timestamp(self) -> int:
        return int((EPOCH + self._scheduler.now() + self.skew) * 1000)

    def sleep(self, seconds: float) -> None:
        self._pause(seconds)
