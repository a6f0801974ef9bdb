from dataclasses import replace
from datetime import datetime

import pytest

from infra.objectives.alerts import ALERTS, Facts
from infra.objectives.history import MINUTE, History
from infra.objectives.recent import _COUNTED, last_of
from infra.objectives.status import moment_text
from infra.telemetry.metrics import Totals
from tests.infra.objectives.test_alerts import FIRES, facts
from tests.infra.objectives.test_history import NOON


def says(name: str, given: Facts) -> str:
    return next(alert for alert in ALERTS if alert.name == name).says(given)


@pytest.mark.parametrize("name", sorted(_COUNTED))
def test_alert_is_over_when_it_was_said_to_be_and_not_before(name: str) -> None:
    """Each of a single minute, so that all of it leaves at once."""
    given = FIRES[name][0][0]
    last = last_of(name, given)
    assert last
    assert last.at == moment_text(NOON - MINUTE)  # the looks of the fixtures end with a minute
    end = datetime.fromisoformat(last.until).timestamp()
    for until, fires in ((end - 1, True), (end, False)):
        given.history.until = until
        assert bool(says(name, replace(given, now=until))) is fires


def test_alert_that_needs_several_is_over_when_too_few_are_left() -> None:
    history = History(NOON)
    for minute, refused in ((1, 2), (2, 4), (4, 3)):
        history.see(NOON + minute * MINUTE + 30, 10, Totals(refused=refused), {})
    last = last_of("WritesRefused", Facts(history.until, history))
    assert last
    assert last.what == "refused write"
    assert (last.at, last.until) == (moment_text(NOON + 4 * MINUTE), moment_text(NOON + 8 * MINUTE))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("StoreAway", facts(degraded="no answer")),
        ("WritesRefused", facts(Totals(refused=5), unwritable="locked")),
        ("DrillOld", facts(Totals(refused=5))),
    ],
)
def test_nothing_is_said_of_what_goes_on(name: str, given: Facts) -> None:
    assert last_of(name, given) is None
