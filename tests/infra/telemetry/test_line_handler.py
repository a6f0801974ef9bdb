import io
import logging
import threading
from collections.abc import Iterator

import pytest

from infra.telemetry import line_handler
from infra.telemetry.line_handler import LineHandler


class Stream(io.StringIO):
    """Notes who writes, and writes only while it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[str] = set()
        self.is_read = threading.Event()
        self.is_read.set()

    def write(self, text: str) -> int:
        self.is_read.wait()
        self.writers.add(threading.current_thread().name)
        return super().write(text)

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def logger(stream: Stream) -> Iterator[logging.Logger]:
    logger = logging.Logger("tried", logging.INFO)
    logger.addHandler(LineHandler(stream))
    yield logger
    stream.is_read.set()
    handler_of(logger).stop()


def handler_of(logger: logging.Logger) -> LineHandler:
    [handler] = logger.handlers
    assert isinstance(handler, LineHandler)
    return handler


def test_each_line_is_written_at_once_where_nothing_was_started(logger: logging.Logger, stream: Stream) -> None:
    logger.info("one")
    assert stream.lines() == ["one"]


def test_line_waits_for_no_reader(logger: logging.Logger, stream: Stream) -> None:
    handler_of(logger).start()
    stream.is_read.clear()
    for number in range(3):
        logger.info("%d", number)
    assert stream.lines() == []
    stream.is_read.set()
    handler_of(logger).stop()
    assert stream.lines() == ["0", "1", "2"]
    assert stream.writers == {"log"}


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_warning_is_written_at_once_behind_what_waits(
    logger: logging.Logger, stream: Stream, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    monkeypatch.setattr(line_handler, "_TOGETHER_SECONDS", 60)
    handler_of(logger).start()
    logger.info("one")
    logger.log(level, "two")
    assert stream.lines() == ["one", "two"]


def test_no_line_is_lost_or_out_of_order(logger: logging.Logger, stream: Stream) -> None:
    def write(writer: str) -> None:
        for number in range(2000):
            logger.log(logging.WARNING if number % 97 == 0 else logging.INFO, "%s %d", writer, number)

    handler_of(logger).start()
    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler_of(logger).stop()
    logger.info("at once")
    *lines, last = stream.lines()
    assert last == "at once"
    for name in "abc":
        assert [line for line in lines if line.startswith(name)] == [f"{name} {number}" for number in range(2000)]


def test_whoever_is_too_far_ahead_waits_for_the_reader(
    logger: logging.Logger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_handler, "_MOST_WAITING", 10)
    handler_of(logger).start()
    stream.is_read.clear()

    def write() -> None:
        for number in range(100):
            logger.info("%d", number)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    stream.is_read.set()
    thread.join()
    handler_of(logger).stop()
    assert stream.lines() == [str(number) for number in range(100)]


def test_reader_that_is_gone_is_told_of_on_stderr(
    logger: logging.Logger, stream: Stream, capsys: pytest.CaptureFixture[str]
) -> None:
    stream.close()
    logger.info("one")
    assert "the log cannot be written: " in capsys.readouterr().err
