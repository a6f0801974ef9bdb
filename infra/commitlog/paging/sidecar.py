"""When a snapshot gets a sidecar, and how one is made for a snapshot that is there already."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from infra.commitlog import ltx
from infra.commitlog.chain import write_pages
from infra.commitlog.paging.btrees import upper_pages
from infra.commitlog.paging.page_index import BlockNotes, PageIndex
from infra.commitlog.paging.upper_pages import UpperPages, compressed

LEAST_SNAPSHOT = 256 * 1024  # bytes of the object: what is smaller is sooner read whole than page by page

# Of upper pages: a start reads all of them, and whoever lacks one reads a block for it
_PARTS_OF_DATABASE = 300  # at most so small a part of it, but
_ENOUGH = 64 * 1024  # bytes, which take no longer than nothing at all, and
_MOST = 8 * 1024 * 1024


def upper_pages_in(image: Path, page_size: int) -> UpperPages:
    """Find the upper pages of a database file, as many as a sidecar takes."""
    budget = min(max(image.stat().st_size // _PARTS_OF_DATABASE, _ENOUGH), _MOST)
    return compressed(upper_pages(image, page_size), page_size, budget)


def index_of(snapshot: Iterable[bytes], image: Path) -> PageIndex:
    """Return where the pages of a snapshot are, whose bytes these are, with its upper pages. `image`: a new file, which
    becomes the database that it holds.

    Raises LogDamaged, with a predicate for a message.
    """
    reader = ltx.Reader(snapshot)
    blocks = BlockNotes(reader)

    def noted() -> Iterator[tuple[int, bytes]]:
        for number, page in reader.pages():
            blocks.note(number)
            yield number, page

    with image.open("xb") as file:
        write_pages(file, reader.header, noted(), 0)
    return blocks.index(reader.checksum, upper_pages_in(image, reader.header.page_size))
