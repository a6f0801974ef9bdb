"""Several objects of the log made into one."""

from collections.abc import Iterator, Sequence
from functools import partial
from heapq import merge
from itertools import chain, groupby, takewhile
from operator import itemgetter
from pathlib import Path

from infra.commitlog import ltx
from infra.commitlog.chain import Change, Position, check_absent
from infra.commitlog.paging.page_index import BlockNotes, PageIndex
from infra.commitlog.paging.sidecar import upper_pages_in
from infra.commitlog.raw_file import page_size_of, pages_of

_WRITTEN_AT_ONCE = 1024 * 1024  # bytes

_Page = tuple[int, int, bytes]  # number, minus the place of its object among the others, content


def write_merged(changes: Sequence[Change], path: Path, timestamp: int) -> ltx.Header:
    """Changes that follow each other as one that does what they do together, byte by byte, in a new file.

    `timestamp`: of the last one, milliseconds since 1970.
    """
    first, last = changes[0].header, changes[-1]
    header = ltx.Header(
        last.header.page_size,
        last.header.size,
        first.min_txid,
        last.header.max_txid,
        timestamp,
        first.predecessor,
        last.position.checksum,
        last.header.log_id,
    )
    with path.open("xb", buffering=_WRITTEN_AT_ONCE) as file:
        writer = ltx.Writer(header, file.write)
        for number, page in _merged(changes):
            writer.add(number, page)
        writer.end()
    return header


def write_snapshot(image: Path, position: Position, path: Path) -> PageIndex:
    """Write the whole of a database file, which is at this position, to a new file, and return where its pages are."""
    page_size = page_size_of(image)
    size = image.stat().st_size // page_size
    header = ltx.Header(page_size, size, 1, position.txid, position.timestamp, 0, position.checksum, position.log_id)
    with path.open("xb", buffering=_WRITTEN_AT_ONCE) as file:
        writer = ltx.Writer(header, file.write)
        blocks = BlockNotes(writer)
        for number, page in pages_of(image, page_size):
            writer.add(number, page)
            blocks.note(number)
        checksum = writer.end()
    return blocks.index(checksum, upper_pages_in(image, page_size))


def _merged(changes: Sequence[Change]) -> Iterator[tuple[int, bytes]]:
    """Of each page the last content, ascending.

    A page past the end of the database at some commit is gone with it, and when the database grows again without
    writing it, it is zeros: what was there before may not shine through.
    """
    last = changes[-1].header
    lock = ltx.lock_page(last.page_size)
    smallest = 0 if changes[0].header.min_txid == 1 else min(change.header.size for change in changes)
    due, absent = smallest + 1, 0
    within = takewhile(lambda numbered: numbered[0] <= last.size, _last_contents(changes))
    for number, page in chain(within, [(last.size + 1, b"")]):
        absent += max(number - due, 0) * last.page_size
        check_absent(absent)
        yield from ((zeros, bytes(last.page_size)) for zeros in range(due, number) if zeros != lock)
        due = max(due, number + 1)
        if page:
            yield number, page


def _last_contents(changes: Sequence[Change]) -> Iterator[tuple[int, bytes]]:
    reach = [change.header.size for change in changes]  # the largest page that outlives all that comes after
    for place in reversed(range(len(reach) - 1)):
        reach[place] = min(reach[place], reach[place + 1])
    every: Iterator[_Page] = merge(*map(partial(_placed, changes), range(len(changes))), key=itemgetter(0, 1))
    for number, contents in groupby(every, key=itemgetter(0)):
        _, place, page = next(contents)
        if number <= reach[-place]:
            yield number, page


def _placed(changes: Sequence[Change], place: int) -> Iterator[_Page]:
    return ((number, -place, page) for number, page in changes[place].pages())
