"""Every kind of violation, made by hand, is seen: a check that cannot fail would be none."""

import itertools
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import lz4.block
import pytest

from tests.checker.checks import violations
from tests.checker.commits import Change, Log, read_log
from tests.checker.history import History, Operation, Row, Window

LAMP = Row(1, "lamp", None, 1, 1)
PAGE = 4096


class Story:
    """Operations one after the other, a second each, at server 0 with freshness 0 if nothing else is said."""

    def __init__(self) -> None:
        self.history = History()
        self.log = Log()
        self._times = itertools.count(10)

    def commit(self, *rows: Row | int) -> int:
        """A row as it is now, or the id of one that is gone."""
        self.log.last += 1
        for row in rows:
            item, now = (row, None) if isinstance(row, int) else (row.id, row)
            self.log.changes.append(Change(self.log.last, item, now))
        return self.log.last

    def tell(self, kind: str, status: int, token: int = 0, **rest: Any) -> Operation:
        moment = next(self._times)
        values: dict[str, Any] = {"server": 0, "freshness": 0.0, "invoked": moment, "returned": moment + 0.5, **rest}
        operation = Operation(kind, "me", status=status, token=token, **values)
        self.history.add(operation)
        return operation

    def create(self, row: Row = LAMP) -> None:
        self.tell("create", 201, self.commit(row), value=row.name, rows=[row])

    def patch(self, row: Row) -> None:
        self.tell("patch", 200, self.commit(row), value=row.description or "", item=row.id, rows=[row])

    def read(self, row: Row, token: int, **rest: Any) -> None:
        self.tell("item", 200, token, item=row.id, rows=[row], **rest)

    def window(self, kind: str, server: int = -1) -> Window:
        """From now on for two operations."""
        moment = next(self._times)
        window = Window(kind, moment, moment + 2.9, server)
        self.history.windows.append(window)
        return window

    @property
    def rules(self) -> set[str]:
        return {violation.rule for violation in violations(self.history, self.log)}


@pytest.fixture
def story() -> Story:
    return Story()


def changed(version: int, description: str | None = None) -> Row:
    return LAMP._replace(version=version, description=description or f"v{version}")


def test_a_good_history_has_no_violation(story: Story) -> None:
    story.create()
    story.patch(changed(2))
    story.read(changed(2), 2, sent=2)
    story.tell("list", 200, 2, q="la", rows=[changed(2)])
    story.tell("create", 503, value="unlucky", stored="no")
    story.tell("create", 503, value="nobody knows", stored="unknown", named=3)
    story.tell("delete", 204, story.commit(1), item=1)
    story.tell("item", 404, 3, item=1, server=1)
    story.tell("invalid", 422, value="wrong")
    story.tell("create", 0, value="cut off")
    assert story.rules == set()


def test_lost_write(story: Story) -> None:
    story.commit()
    story.tell("create", 201, 1, value="lamp", rows=[LAMP])
    assert story.rules == {"lost"}


def test_lost_change(story: Story) -> None:
    story.create()
    story.commit(changed(2, "another's"))
    story.tell("patch", 200, 2, item=1, value="v2", rows=[changed(2)])
    assert "lost" in story.rules


def test_change_that_another_one_of_its_commit_has_hidden_is_not_lost(story: Story) -> None:
    story.create()
    txid = story.commit(changed(3))
    story.tell("patch", 200, txid, item=1, value="v2", rows=[changed(2)], invoked=12, returned=15)
    story.tell("patch", 200, txid, item=1, value="v3", rows=[changed(3)], invoked=12, returned=15)
    assert story.rules == set()


@pytest.mark.parametrize("name", ["lamp", "shell-1"])
def test_id_that_is_given_again(story: Story, name: str) -> None:
    story.create()
    story.tell("delete", 204, story.commit(1), item=1)
    story.commit(LAMP._replace(name=name))
    assert "reused" in story.rules


def test_name_that_changes(story: Story) -> None:
    story.create()
    story.commit(LAMP._replace(name="another", version=2))
    assert "reused" in story.rules


@pytest.mark.parametrize(("status", "stored"), [(201, ""), (503, "unknown"), (0, "")])
def test_doubled_create(story: Story, status: int, stored: str) -> None:
    story.commit(LAMP)
    story.commit(LAMP._replace(id=2))
    story.tell("create", status, 2, value="lamp", stored=stored, rows=[LAMP])
    assert "doubled" in story.rules


def test_doubled_change(story: Story) -> None:
    story.create()
    story.commit(changed(2, "twice"))
    story.commit(changed(3, "twice"))
    story.tell("patch", 200, 3, value="twice", item=1, rows=[changed(3, "twice")])
    assert story.rules == {"doubled"}


def test_doubled_change_within_a_commit(story: Story) -> None:
    story.create()
    story.commit(changed(3, "twice"))
    story.tell("patch", 200, 2, value="twice", item=1, rows=[changed(3, "twice")])
    assert story.rules == {"doubled"}


def test_two_changes_to_one_version(story: Story) -> None:
    story.create()
    story.patch(changed(2))
    story.tell("patch", 200, 2, value="v2", item=1, rows=[changed(2)])
    assert "forked" in story.rules


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        ({"kind": "create", "status": 503, "stored": "no"}, "stored no"),
        ({"kind": "invalid", "status": 422}, "refused"),
        ({"kind": "create", "status": 412}, "refused"),
    ],
)
def test_refused_write_that_is_stored(story: Story, operation: dict[str, Any], rule: str) -> None:
    story.commit(LAMP)
    story.tell(value="lamp", **operation)
    assert rule in story.rules


def test_change_that_is_stored_later_though_the_answer_was_no(story: Story) -> None:
    story.create()
    story.tell("patch", 503, value="v2", item=1, stored="no")
    story.read(LAMP, 1)
    story.commit(changed(2))
    assert story.rules == {"stored no"}


def test_delete_that_is_stored_though_the_answer_was_no(story: Story) -> None:
    story.create()
    story.commit(1)
    story.tell("delete", 503, item=1, stored="no")
    assert story.rules == {"stored no"}


def test_unknown_write_under_another_number(story: Story) -> None:
    story.tell("create", 503, value="lamp", stored="unknown", named=1)
    story.commit()
    story.commit(LAMP)
    assert story.rules == {"wrong txid"}


def test_absence_that_was_not_final(story: Story) -> None:
    story.create()
    story.tell("create", 503, value="shade", stored="unknown", named=2)
    story.tell("list", 200, 2, q="shade")
    story.commit(Row(2, "shade", None, 1, 1))
    assert story.rules == {"not final"}


def test_absence_before_the_named_number_is_not_final(story: Story) -> None:
    story.create()
    story.tell("create", 503, value="shade", stored="unknown", named=2)
    story.tell("list", 200, 1, q="shade")
    story.commit(Row(2, "shade", None, 1, 1))
    assert story.rules == set()


def test_order_against_real_time(story: Story) -> None:
    early, late = story.commit(LAMP), story.commit(Row(2, "shade", None, 1, 1))
    story.tell("create", 201, late, value="shade", rows=[LAMP])
    story.tell("create", 201, early, value="lamp", rows=[LAMP])
    assert story.rules == {"order"}


def test_token_older_than_its_own_commit(story: Story) -> None:
    story.create()
    story.tell("create", 201, 1, value="shade", rows=[Row(2, "shade", None, 1, 1)])
    story.commit(Row(2, "shade", None, 1, 1))
    assert "old token" in story.rules


def test_token_older_than_the_state_beside_it(story: Story) -> None:
    story.create()
    story.patch(changed(2))
    story.read(changed(2), 1, invoked=11, returned=20)
    assert story.rules == {"old token"}


def test_token_may_be_newer_than_the_state_beside_it(story: Story) -> None:
    story.create()
    story.patch(changed(2))
    story.read(LAMP, 2, invoked=11, returned=20)
    assert story.rules == set()


def test_state_that_never_was(story: Story) -> None:
    story.create()
    story.create(Row(2, "lamp too", None, 1, 1))
    story.tell("list", 200, 2, q="lamp", rows=[Row(2, "lamp too", None, 1, 1)])
    assert story.rules == {"no such state"}


def test_session_is_shown_less_than_its_token(story: Story) -> None:
    story.create()
    story.patch(changed(2))
    story.read(LAMP, 1, sent=2, server=1, freshness=60)
    assert story.rules == {"less than the token"}


def test_server_goes_backwards(story: Story) -> None:
    story.create()
    story.patch(changed(2))
    story.read(changed(2), 2, server=1, freshness=60)
    story.read(LAMP, 1, server=1, freshness=60)
    assert story.rules == {"backwards"}


@pytest.mark.parametrize(("freshness", "rules"), [(0.0, {"stale"}), (1.0, {"stale"}), (5.0, set[str]())])
def test_stale_read(story: Story, freshness: float, rules: set[str]) -> None:
    story.create()
    story.patch(changed(2))
    story.tell("item", 404, 2, item=9)  # a second passes
    story.read(LAMP, 1, server=1, freshness=freshness)
    assert story.rules == rules


def test_server_whose_clocks_stood_still_cannot_know_how_old_its_state_is(story: Story) -> None:
    story.create()
    story.patch(changed(2))
    story.window("asleep", server=1)
    story.read(LAMP, 1, server=1, freshness=1.0)
    assert story.rules == set()
    story.read(LAMP, 1, server=1, freshness=0.0)
    assert story.rules == {"stale"}


@pytest.mark.parametrize(
    "operation",
    [
        {"kind": "item", "status": 500},
        {"kind": "create", "status": 500},
        {"kind": "item", "status": 412, "sent": 1},
        {"kind": "create", "status": 503},
        {"kind": "list", "status": 404},
    ],
)
def test_status_that_no_promise_allows(story: Story, operation: dict[str, Any]) -> None:
    story.tell(**operation)
    assert "status" in story.rules


def test_token_of_a_log_that_is_away_may_be_refused(story: Story) -> None:
    story.window("moving")
    story.tell("item", 412, sent=1)
    assert story.rules == set()


def test_acknowledged_into_an_empty_log(story: Story) -> None:
    story.window("empty")
    story.create()
    assert story.rules == {"empty log"}


def test_state_of_an_empty_log(story: Story) -> None:
    story.create()
    window = story.window("empty")
    story.read(LAMP, 1, server=1, freshness=10.0)
    assert story.rules == set()
    story.read(LAMP, 1, invoked=window.begin + 2.1, returned=window.begin + 2.2)
    assert story.rules == {"empty log"}


# The log


def image(path: Path, *statements: str) -> list[bytes]:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()
    content = path.read_bytes()
    return [content[start : start + PAGE] for start in range(0, len(content), PAGE)]


def ltx(txid: int, size: int, pages: dict[int, bytes]) -> bytes:
    body = struct.pack(">4sIIIQQ68x", b"LTX1", 2, PAGE, size, txid, txid)
    for number, page in pages.items():
        block = lz4.block.compress(page, store_size=False)
        body += struct.pack(">IHI", number, 1, len(block)) + block
    return body + bytes(6) + b"index and checksums"


def test_log_is_read_commit_by_commit(tmp_path: Path) -> None:
    table = (
        "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, description TEXT, quantity INTEGER, version INTEGER)"
    )
    first = image(tmp_path / "app.db", table, "INSERT INTO items VALUES (1, 'lamp', NULL, 1, 1)")
    second = image(tmp_path / "app.db", "UPDATE items SET version = 2, description = 'v2'")
    third = image(tmp_path / "app.db", "DELETE FROM items")
    whole = [
        {number: page for number, page in enumerate(pages, 1) if pages is first or page != first[number - 1]}
        for pages in (first, second, third)
    ]
    commits = {txid: ltx(txid, len(first), pages) for txid, pages in enumerate(whole, 1)}
    log = read_log(commits)
    assert log.changes == [Change(1, 1, LAMP), Change(2, 1, changed(2)), Change(3, 1, None)]
    assert (log.last, log.rows) == (3, {})
    gap = read_log({1: commits[1], 3: commits[3]})
    assert (gap.last, gap.trouble) == (1, "TXID 0000000000000002 is not there, but 0000000000000003 is")
    assert "0000000000000001: its object has the header" in read_log({1: commits[2]}).trouble
    assert "0000000000000001: " in read_log({1: commits[1][:200]}).trouble
