"""Where the lines of the log go out."""

import logging
import sys
import threading
from collections import deque
from typing import TextIO

_TOGETHER_SECONDS = 0.01  # in which lines are collected
_MOST_WAITING = 10_000  # lines, should the one who reads them be slow


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each line at once; from `start` to `stop` those below WARNING together, on a thread.

    So a server's event loop makes no system call for each request's line. What else ends the process than a signal that
    cannot be caught writes what is still waiting first.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._waiting: deque[str] = deque()
        self._any = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._writing = threading.RLock()  # which whoever has a line to add need not wait for

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, or have it written soon. Lines stay in order."""
        try:
            self.write(self.format(record), is_urgent=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)

    def write(self, line: str, *, is_urgent: bool = False) -> None:
        """The same for a line that was made without a record."""
        self._waiting.append(line)
        if self._thread is None or is_urgent or len(self._waiting) > _MOST_WAITING:
            self.flush()
        elif not self._any.is_set():
            self._any.set()

    def flush(self) -> None:
        """Write what is waiting."""
        with self._writing:
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not lines:
                return
            try:
                self.stream.write("\n".join(lines) + "\n")
                self.stream.flush()
            except Exception as error:
                print(f"the log cannot be written: {error}", file=sys.stderr)  # noqa: T201

    def start(self) -> "LineHandler":
        """Write on a thread from now on."""
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Write each line at once again."""
        thread, self._thread = self._thread, None
        self._ended.set()
        self._any.set()
        if thread:
            thread.join()
        self.flush()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._any.wait()
            self._any.clear()
            self._ended.wait(_TOGETHER_SECONDS)
            self.flush()
