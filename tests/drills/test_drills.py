"""What the drills themselves must keep to, without a container."""

import re
from dataclasses import replace

import pytest

from tests.drills import drills
from tests.drills.__main__ import report
from tests.drills.drills import DRILLS, Outcome
from tests.drills.runbook import Step
from tests.e2e.processes import ROOT

STEPS = {name: step for name, step in vars(drills).items() if isinstance(step, Step)}
SOUND = Outcome("x", noticed=1, recovered=2, pause=1, writes=100)


def test_every_step_is_one_line_of_the_runbook() -> None:
    assert len(STEPS) > 20
    assert [step.script for step in STEPS.values() if not step.script.strip()] == []


def test_every_drill_rehearses_a_procedure() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert [drill.name for drill in DRILLS if drill.procedure not in headings] == []


@pytest.mark.parametrize(
    "step", [Step("No such procedure", "x"), Step("Roll back", "curl|docker"), Step("Roll back", "y z")]
)
def test_step_that_the_runbook_has_not_just_once_is_said(step: Step) -> None:
    with pytest.raises(LookupError, match=re.escape(repr(step.procedure))):
        _ = step.script


def test_step_has_all_that_it_pipes_into_and_no_comment() -> None:
    assert re.search("^docker logs .* awk .*}'$", Step("P2: performance degradation", "duration_ms // empty").script)
    assert "#" not in Step("Deploy a version", "^make build").script


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        (SOUND, False),
        (replace(SOUND, lost=1, lost_seconds=0.1), True),
        (replace(SOUND, lost=1, lost_seconds=0.1, promised_seconds=3600.0), False),
        (replace(SOUND, lost=1, lost_seconds=3601.0, promised_seconds=3600.0), True),
        (replace(SOUND, recovered=601.0), True),
    ],
)
def test_outcome_is_held_against_what_is_promised(outcome: Outcome, failed: bool) -> None:
    outcome = replace(outcome)
    outcome.judge()
    assert bool(outcome.failure) is failed
    assert ("| FAILED |" in report([outcome])) is failed
