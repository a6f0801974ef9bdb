import random
import sqlite3
import zlib
from array import array
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import LogDamaged
from infra.commitlog.paging.btrees import upper_pages
from infra.commitlog.paging.upper_pages import GROUP, UpperPages, compressed

ITEMS = Path(__file__).parents[4] / "core" / "migrations" / "0001_items.sqlite.sql"
PLENTY = 1 << 30  # bytes


@pytest.fixture(params=[512, 1024, 4096, 65536])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return database(tmp_path / "app.db", request.param, 3000)


def database(path: Path, page_size: int, rows: int) -> Path:
    """Items, some of which were changed and deleted later, and tables of other kinds."""
    draw = random.Random(1)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.executescript(ITEMS.read_text())
        for n in range(30):
            connection.execute(f"CREATE TABLE small_{n} (key TEXT PRIMARY KEY, value) WITHOUT ROWID")
        connection.execute("BEGIN")
        for n in range(rows):
            text = "".join(draw.choices("abc ", k=draw.randint(100, 700)))
            time = f"2026-01-{n // 1440 % 28 + 1:02}T{n // 60 % 24:02}:{n % 60:02}:00Z"
            connection.execute("INSERT INTO items VALUES (NULL, ?, ?, 1, 1, ?, ?, 1)", (text[:20], text, time, time))
        for n in range(rows // 3):
            connection.execute("INSERT OR REPLACE INTO small_7 VALUES (?, ?)", (f"{draw.random():.9f}", n))
            connection.execute("DELETE FROM items WHERE id = ?", (draw.randint(1, rows),))
            connection.execute("UPDATE items SET created_at = ? WHERE id = ?", (str(n), draw.randint(1, rows)))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    return path


def deep_database(path: Path) -> Path:
    """One whose keys are so long that few of them fit on a page."""
    draw = random.Random(1)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size = 512")
        connection.execute("CREATE TABLE shallow (v)")
        connection.execute("CREATE TABLE deep (key TEXT PRIMARY KEY) WITHOUT ROWID")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO shallow VALUES (?)", ([n] for n in range(3000)))
        connection.executemany("INSERT INTO deep VALUES (?)", ([draw.randbytes(45).hex()] for _ in range(3000)))
        connection.execute("COMMIT")
    return path


@dataclass(frozen=True)
class Place:
    """Of a page, as SQLite itself says."""

    btree: str
    way: tuple[int, ...]  # which child of which child of the root
    is_leaf: bool
    number: int


def places(image: Path) -> list[Place]:
    with closing(apsw.Connection(str(image))) as connection:
        found = connection.execute(
            "SELECT name, path, pagetype, pageno FROM dbstat WHERE pagetype IN ('internal', 'leaf')"
        ).fetchall()
    return [
        Place(
            str(name), tuple(int(part, 16) for part in str(path).split("/") if part), kind == "leaf", int(str(number))
        )
        for name, path, kind, number in found
    ]


def page_size_of(image: Path) -> int:
    size = int.from_bytes(image.read_bytes()[16:18], "big")
    return 65536 if size == 1 else size


def test_upper_pages_are_what_sqlite_says_they_are(image: Path) -> None:
    expected, found = set(), places(image)
    for btree in {place.btree for place in found}:
        own = [place for place in found if place.btree == btree]
        expected |= {place.number for place in own if not place.is_leaf or btree == "sqlite_schema" or not place.way}
        expected.add(max((place for place in own if place.is_leaf), key=lambda place: place.way).number)
    numbers = [number for number, _ in upper_pages(image, page_size_of(image))]
    assert set(numbers) == expected
    assert len(numbers) == len(expected)


def test_those_nearest_to_the_roots_come_first(tmp_path: Path) -> None:
    image = deep_database(tmp_path / "app.db")
    found = {place.number: place for place in places(image)}
    numbers = [number for number, _ in upper_pages(image, 512)]
    order = [found[number] for number in numbers]
    assert numbers[0] == 1
    schema = [place.btree == "sqlite_schema" for place in order]
    assert schema == sorted(schema, reverse=True)
    others = [place for place in order if place.btree != "sqlite_schema"]
    roots = [not place.way for place in others]
    assert roots == sorted(roots, reverse=True)
    last_ways = {max((p.way, p.btree) for p in found.values() if p.btree == place.btree) for place in others}
    depths = [
        len(place.way)
        for place in others
        if not any(place.btree == btree and way[: len(place.way)] == place.way for way, btree in last_ways)
    ]
    assert depths == sorted(depths)
    assert max(depths) == 3


def test_their_content_is_that_of_the_file(image: Path) -> None:
    page_size = page_size_of(image)
    content = image.read_bytes()
    upper = compressed(upper_pages(image, page_size), page_size, PLENTY)
    assert len(upper.numbers) > GROUP
    shuffled = random.Random(1).sample(list(upper.numbers), len(upper.numbers))
    for number in shuffled:
        assert upper.read(number) == content[(number - 1) * page_size : number * page_size]
    assert upper.read(len(content) // page_size + 1) is None
    assert upper.read(0) is None


@pytest.mark.parametrize("budget", [0, 500, 5_000, 20_000])
def test_budget_leaves_out_what_is_farthest_from_the_roots(budget: int, tmp_path: Path) -> None:
    image = deep_database(tmp_path / "app.db")
    pages = list(upper_pages(image, 512))
    upper = compressed(pages, 512, budget)
    assert list(upper.numbers) == [number for number, _ in pages[: len(upper.numbers)]]
    assert sum(map(len, upper.groups)) + 4 * (len(upper.numbers) + len(upper.groups)) <= budget
    assert len(upper.numbers) < len(pages)
    assert not budget or budget < 1000 or upper.numbers


def test_interior_pages_become_far_smaller(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size = 1024")
        connection.executescript(ITEMS.read_text())
        connection.execute("BEGIN")
        for n in range(30_000):
            time = f"2026-01-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}.{n * 7919 % 1000:03}Z"
            connection.execute("INSERT INTO items VALUES (NULL, ?, NULL, 1, 1, ?, ?, 1)", ("a" * 800, time, time))
        connection.execute("COMMIT")
    pages = list(upper_pages(tmp_path / "app.db", 1024))
    upper = compressed(pages, 1024, PLENTY)
    assert len(pages) > 300
    assert sum(map(len, upper.groups)) < 0.1 * 1024 * len(pages)


@given(st.lists(st.binary(min_size=512, max_size=512), max_size=40))
def test_pages_of_any_content_are_read_as_they_were(contents: list[bytes]) -> None:
    pages = list(enumerate(contents, 1))
    upper = compressed(pages, 512, PLENTY)
    assert [(number, upper.read(number)) for number, _ in pages] == pages


@pytest.mark.parametrize("kind", [2, 5, 10, 13])
@given(st.data())
def test_pages_that_only_begin_like_a_btrees_are_read_as_they_were(kind: int, data: st.DataObject) -> None:
    page = bytes([kind]) + data.draw(st.binary(min_size=511, max_size=511))
    upper = compressed([(7, page)], 512, PLENTY)
    assert upper.read(7) == page


def test_page_that_its_array_fills_to_the_end_is_read_as_it_was() -> None:
    size = 65_536
    page = bytes([10, 0, 0]) + (size // 2 - 4).to_bytes(2, "big") + random.Random(1).randbytes(size - 5)
    assert compressed([(7, page)], size, PLENTY).read(7) == page


def test_damaged_file_has_upper_pages_of_some_kind(image: Path) -> None:
    """What they are does not matter, but that it comes to an end: of a file whose pages lead in circles too."""
    page_size, content = page_size_of(image), image.read_bytes()
    draw = random.Random(2)
    pages = [content[begin : begin + page_size] for begin in range(0, len(content), page_size)]
    damaged = image.with_name("damaged.db")
    for _ in range(5):
        damaged.write_bytes(pages[0] + b"".join(draw.choices(pages, k=len(pages) - 1)))
        found = list(upper_pages(damaged, page_size))
        assert len({number for number, _ in found}) == len(found) <= len(pages)
    damaged.write_bytes(draw.randbytes(10 * page_size))
    assert [number for number, _ in upper_pages(damaged, page_size)] == [1]


def test_no_file_is_left_beside_the_image(image: Path) -> None:
    there = set(image.parent.iterdir())
    assert list(upper_pages(image, page_size_of(image)))
    assert set(image.parent.iterdir()) == there


def test_group_that_is_none_is_damage() -> None:
    for group in (b"", b"no zlib", zlib.compress(bytes(515)), zlib.compress(bytes(517)), zlib.compress(bytes(1 << 24))):
        with pytest.raises(LogDamaged, match="group 0"):
            UpperPages(array("I", [1]), [group], 512).read(1)
