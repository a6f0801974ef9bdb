"""What becomes of a file at a start, row by row of the table in docs/commit-log.md, without a file."""

import inspect
import re
from itertools import product
from pathlib import Path

import pytest

from infra.commitlog.at_rest.decide import Content, Do, Facts, File, Fit, Log, OnTop, Unknown, Verdict, decide

PAGE = Path(__file__).parents[4] / "docs" / "commit-log.md"

# The beginning of each row, and the facts that it is about
ROWS: dict[str, list[tuple[Facts, Do]]] = {
    "as a clean stop left it": [(Facts(File.AS_LEFT), Do.CATCH_UP)],
    "overwritten while the service ran, and not to be told from a checkpoint of another program that was killed": [
        (Facts(File.WHOLE, Log.UNCHANGED, on_top=OnTop.PERHAPS, unknown=Unknown.NOTHING), Do.KEEP_BESIDE),
    ],
    "as a crash left it": [
        (Facts(File.WHOLE, Log.UNCHANGED, differs=False), Do.SERVE),
        (Facts(File.WHOLE, Log.CHANGED, differs=False), Do.SERVE),
        (Facts(File.WHOLE, Log.UNCHANGED, unknown=Unknown.NOTHING), Do.WRITE_ANEW),
        (Facts(File.WHOLE, Log.CHANGED, unknown=Unknown.NOTHING), Do.WRITE_ANEW),
        (Facts(File.HALF_WRITTEN, Log.UNCHANGED, unknown=Unknown.NOTHING), Do.WRITE_ANEW),
    ],
    "changed by somebody since, on top of all that it had, and the log was not": [
        (Facts(File.WHOLE, Log.UNCHANGED, on_top=OnTop.YES, fit=Fit.SERVED), Do.NEXT_COMMIT),
        (
            Facts(File.WHOLE, Log.UNCHANGED, on_top=OnTop.PERHAPS, unknown=Unknown.SOMETHING, fit=Fit.SERVED),
            Do.NEXT_COMMIT,
        ),
    ],
    "changed on top of less than that": [
        (Facts(File.WHOLE, Log.UNCHANGED, unknown=Unknown.SOMETHING), Do.KEEP_BESIDE),
        (Facts(File.MIXED, Log.UNCHANGED), Do.KEEP_BESIDE),
        (Facts(File.MIXED, Log.CHANGED), Do.KEEP_BESIDE),
    ],
    "changed on top of all that it had, as its WAL shows, and so was the log": [
        (Facts(File.WHOLE, Log.CHANGED, unknown=Unknown.SOMETHING, rows=b"changeset"), Do.DO_ROWS_AGAIN),
        (Facts(File.WHOLE, Log.CHANGED, unknown=Unknown.SOMETHING, rows=b""), Do.DO_ROWS_AGAIN),
    ],
    "changed otherwise, and so was the log, or the log cannot tell": [
        (Facts(File.WHOLE, Log.CHANGED, unknown=Unknown.SOMETHING, why="not rows"), Do.KEEP_BESIDE),
        (Facts(File.WHOLE, Log.CHANGED, unknown=Unknown.UNTOLD, why="merged"), Do.KEEP_BESIDE),
        (Facts(File.WHOLE, Log.UNCHANGED, unknown=Unknown.UNTOLD, why="merged"), Do.KEEP_BESIDE),
        (Facts(File.WHOLE, Log.UNCHANGED, on_top=OnTop.PERHAPS, unknown=Unknown.UNTOLD, why="merged"), Do.KEEP_BESIDE),
        (Facts(File.HALF_WRITTEN, Log.UNCHANGED, unknown=Unknown.SOMETHING), Do.KEEP_BESIDE),
        (Facts(File.HALF_WRITTEN, Log.UNCHANGED, unknown=Unknown.UNTOLD), Do.KEEP_BESIDE),
    ],
    "damaged": [
        (Facts(File.DAMAGED, Log.UNCHANGED, unknown=Unknown.SOMETHING, why="torn"), Do.KEEP_BESIDE),
        (Facts(File.DAMAGED, Log.CHANGED, unknown=Unknown.UNTOLD, why="torn"), Do.KEEP_BESIDE),
        (Facts(File.DAMAGED, Log.UNCHANGED, unknown=Unknown.NOTHING, why="torn"), Do.WRITE_ANEW),
    ],
    "whole, but not this service's": [
        (Facts(File.WHOLE, Log.UNCHANGED, on_top=OnTop.YES, fit=Fit.REFUSED, why="too new"), Do.KEEP_BESIDE),
        (Facts(File.WHOLE, Log.UNCHANGED, on_top=OnTop.YES, fit=Fit.NEW, why="nothing in it"), Do.KEEP_BESIDE),
    ],
    "of an older release's schema": [
        (Facts(File.WHOLE, Log.UNCHANGED, on_top=OnTop.YES, fit=Fit.OLDER), Do.MIGRATE_THEN_COMMIT),
    ],
    "of 0 bytes": [
        (Facts(File.EMPTY, Log.UNCHANGED, unknown=Unknown.NOTHING), Do.FILL),
        (Facts(File.EMPTY, Log.CHANGED, unknown=Unknown.NOTHING), Do.FILL),
        (Facts(File.EMPTY, Log.UNCHANGED, unknown=Unknown.SOMETHING), Do.KEEP_BESIDE),
    ],
    "there, and the log is empty": [
        (Facts(File.UNOPENED, Log.EMPTY), Do.LOOK_INSIDE),
        (Facts(File.EMPTY, Log.EMPTY), Do.LOOK_INSIDE),
        (Facts(File.WHOLE, Log.EMPTY), Do.FIRST_COMMIT),
        (Facts(File.UNOPENED, Log.EMPTY, fit=Fit.REFUSED), Do.REFUSE),
        (Facts(File.DAMAGED, Log.EMPTY), Do.REFUSE),
    ],
    "not there": [(Facts(File.MISSING), Do.BUILD)],
}
# Whatever could be found, also what nothing else would let happen
ALL = [
    Facts(file, log, differs, on_top, unknown, fit, rows, "found")
    for file, log, differs, on_top, unknown, fit, rows in product(
        File, Log, (False, True), OnTop, Unknown, Fit, (None, b"", b"changeset")
    )
]


def rows_of_the_page() -> list[str]:
    section = PAGE.read_text().split("\n| the file is | then |\n|---|---|\n")[1].split("\n\n")[0]
    return [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines()]


def verdicts(*wanted: Do) -> list[Facts]:
    found = [facts for facts in ALL if decide(facts).do in wanted]
    assert found
    return found


@pytest.mark.parametrize(
    ("facts", "do"), [case for cases in ROWS.values() for case in cases], ids=lambda value: repr(value)[:80]
)
def test_row(facts: Facts, do: Do) -> None:
    assert decide(facts).do is do


def test_each_row_of_the_page_has_an_arm_and_a_test_in_its_order() -> None:
    arms = re.findall(r"^        # ([^A-Z\n].*)$", inspect.getsource(decide), re.MULTILINE)
    page = rows_of_the_page()
    assert list(ROWS) == arms
    assert [row.startswith(arm) for row, arm in zip(page, arms, strict=True)] == [True] * len(page)


def test_each_verdict_but_the_questions_is_in_some_row() -> None:
    assert {do for cases in ROWS.values() for _, do in cases} == set(Do) - {Do.ASK_THE_LOG}


def test_there_is_always_a_verdict() -> None:
    assert len(ALL) > 10_000
    assert all(isinstance(decide(facts), Verdict) for facts in ALL)


def test_two_looks_lead_to_the_end() -> None:
    for facts in verdicts(Do.ASK_THE_LOG):
        assert facts.log is Log.UNREAD
    for facts in verdicts(Do.LOOK_INSIDE):
        assert facts.file in (File.UNOPENED, File.EMPTY)
        assert facts.log is not Log.UNREAD


def test_commit_of_an_edit_takes_back_nothing_that_was_acknowledged_and_is_no_mixture() -> None:
    for facts in verdicts(Do.NEXT_COMMIT, Do.MIGRATE_THEN_COMMIT):
        assert facts.file is File.WHOLE
        assert facts.log is Log.UNCHANGED
        assert facts.differs
        on_top = facts.on_top is OnTop.YES or (facts.on_top, facts.unknown) == (OnTop.PERHAPS, Unknown.SOMETHING)
        assert on_top


def test_only_what_this_release_serves_is_committed() -> None:
    assert {facts.fit for facts in verdicts(Do.NEXT_COMMIT)} == {Fit.SERVED}
    assert {facts.fit for facts in verdicts(Do.MIGRATE_THEN_COMMIT)} == {Fit.OLDER}
    assert Fit.REFUSED not in {facts.fit for facts in verdicts(Do.FIRST_COMMIT)}


def test_damage_never_becomes_history() -> None:
    for facts in ALL:
        if facts.file is File.DAMAGED:
            assert decide(facts).do in (Do.WRITE_ANEW, Do.KEEP_BESIDE, Do.REFUSE, Do.ASK_THE_LOG)


def test_nothing_is_thrown_away_that_the_log_has_not() -> None:
    for facts in verdicts(Do.WRITE_ANEW, Do.FILL):
        assert facts.unknown is Unknown.NOTHING
        assert facts.content is Content.THE_LOGS
        assert not (facts.file is File.WHOLE and facts.on_top is OnTop.YES)  # else an edit back to what the log had
    for facts in verdicts(Do.DO_ROWS_AGAIN):
        assert facts.rows is not None
    for facts in verdicts(Do.SERVE):
        assert not facts.differs


def test_empty_log_loses_no_file() -> None:
    for facts in ALL:
        if facts.log is Log.EMPTY and facts.file not in (File.MISSING, File.AS_LEFT):
            assert decide(facts).do in (Do.FIRST_COMMIT, Do.REFUSE, Do.LOOK_INSIDE)
    for facts in verdicts(Do.FIRST_COMMIT):
        assert (facts.file, facts.log) == (File.WHOLE, Log.EMPTY)
    assert {facts.file for facts in verdicts(Do.BUILD)} == {File.MISSING}


def test_what_is_kept_is_kept_for_a_reason() -> None:
    assert all(decide(facts).reason for facts in verdicts(Do.KEEP_BESIDE))


def test_state_that_is_older_than_the_note_says_is_said() -> None:
    assert "in an older state" in decide(Facts(File.WHOLE, Log.UNCHANGED, unknown=Unknown.NOTHING)).reason
    assert decide(Facts(File.WHOLE, Log.CHANGED, unknown=Unknown.NOTHING)).reason == ""
