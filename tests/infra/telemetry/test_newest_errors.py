import logging

import pytest

from infra.telemetry.logs import CONTEXT_KEYS
from infra.telemetry.newest_errors import NewestErrors


def test_newest_twenty_errors_are_kept_with_the_id_of_their_request(caplog: pytest.LogCaptureFixture) -> None:
    kept, logger = NewestErrors(), logging.getLogger("of.a.test")
    logger.addHandler(kept)
    try:
        logger.warning("no error")
        for number in range(25):
            logger.error("error %d", number)
        CONTEXT_KEYS.set({"request_id": "abc"})
        logger.critical("x" * 1000)
        CONTEXT_KEYS.set({})
    finally:
        logger.removeHandler(kept)
    newest, second, *others = kept.newest_first()
    assert (newest.level, newest.request_id, newest.message, newest.logger) == (
        "CRITICAL",
        "abc",
        "x" * 500,
        "of.a.test",
    )
    assert (second.level, second.message, second.request_id) == ("ERROR", "error 24", None)
    assert len(others) == 18


def test_equal_errors_are_one_with_their_number_and_the_newest_time() -> None:
    kept = NewestErrors()
    for at, message in ((1.0, "away"), (2.0, "other"), *((3.0 + n, "away") for n in range(20))):
        record = logging.LogRecord("of.a.test", logging.ERROR, "", 0, message, None, None)
        record.created = at
        kept.handle(record)
    assert [(error.message, error.count, error.at) for error in kept.newest_first()] == [
        ("away", 21, 22.0),
        ("other", 1, 2.0),
    ]
