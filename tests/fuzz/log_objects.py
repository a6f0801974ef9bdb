"""Objects of the commit log: what is in one, what it is called, how several follow each other."""

import struct
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import lz4.block
from fastcrc.crc64 import go_iso
from hypothesis import strategies as st

from core.errors import LogDamaged
from infra.commitlog import LogObject, ltx
from infra.commitlog.chain import MOST_ABSENT, Change, chain, restorable, write_pages
from infra.commitlog.objects import ObjectNames
from infra.storage.object_store import ObjectInfo
from tests.fuzz import odd

_MOST_PER_BYTE = 255  # that LZ4 makes of one
_THEN = datetime.fromtimestamp(0, UTC)
_u32, _u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
_small = st.integers(0, 6)


@st.composite
def _headers(draw: st.DrawFn) -> bytes:
    """Each field as it should be, or as it should not."""
    return struct.pack(
        ">4sIIIQQqQqqQQQ12x",
        draw(st.sampled_from([b"LTX1"] * 9 + [b"LTX2", bytes(4)])),
        draw(st.sampled_from([2] * 9 + [0, 1, 2**32 - 1])),
        draw(st.sampled_from([512] * 6 + [1024, 65536] + [0, 1, 513, 256, 131072, 2**32 - 1])),
        draw(_small | _u32),
        draw(_small | _u64),
        draw(_small | _u64),
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(st.sampled_from([0] * 9 + [1])),
        draw(st.sampled_from([32] * 9 + [0, -1])),
        draw(st.sampled_from([0] * 9 + [-1, 4096])),
        draw(_u64),
        draw(_u64),
        draw(_u64),
    )


@st.composite
def _pages(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A page as it is stored, and as it counts for the checksum."""
    page = draw(st.binary(max_size=8)).ljust(
        draw(st.sampled_from([512] * 6 + [0, 511, 513, 1024, 65536, 2**20])), b"\0"
    )
    block = lz4.block.compress(page, store_size=False) if draw(st.integers(0, 5)) else draw(st.binary(max_size=60))
    length = len(block) if draw(st.integers(0, 7)) else draw(_small | _u32)
    head = struct.pack(">IHI", draw(_small | _u32), draw(st.sampled_from([1] * 12 + [0, 2, 65535])), length)
    return head + block, head + page


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Files whose checksum is right, mostly: so what is behind it is reached."""
    header = draw(_headers())
    pages = draw(st.lists(_pages(), max_size=4))
    tail = bytes(6) + draw(st.binary(max_size=40)) + struct.pack(">QQ", draw(_small | _u64), draw(_small | _u64))
    crc = go_iso(header + b"".join(counted for _, counted in pages) + tail) | 1 << 63
    if not draw(st.integers(0, 9)):
        crc = draw(_u64)
    body = header + b"".join(stored for stored, _ in pages) + tail + struct.pack(">Q", crc)
    if not draw(st.integers(0, 4)):
        body = body[: draw(st.integers(0, len(body)))] + draw(st.binary(max_size=10))
    return body


cases = st.tuples(files() | st.binary(max_size=200), st.integers(1, 700), st.integers(0, 9))


def decode(case: tuple[bytes, int, int]) -> None:
    """Read as whatever takes an object reads it; what comes out is bounded by what went in."""
    body, chunk, level = case
    pieces = (body[start : start + chunk] for start in range(0, len(body), chunk))
    try:
        change = Change(pieces, level)
    except LogDamaged:
        return
    try:
        header, found = change.header, list(change.pages())
        assert sum(len(page) for _, page in found) <= _MOST_PER_BYTE * len(body)
        assert {len(page) for _, page in found} <= {header.page_size}
        numbers = [number for number, _ in found]
        assert numbers == sorted(set(numbers))
        assert all(1 <= number <= header.size for number in numbers)
        assert ltx.lock_page(header.page_size) not in numbers
        assert 1 <= header.min_txid <= header.max_txid
        _write(change)
    finally:
        change.close()


def _write(change: Change) -> None:
    """No database comes of it that is far longer than what is in the object."""
    file = _Measured()
    with suppress(LogDamaged):
        write_pages(file, change.header, change.pages(), 0)
    assert file.size <= MOST_ABSENT + file.written


class _Measured:
    """A file that only takes down how long it would be."""

    def __init__(self) -> None:
        self.size = self.written = self._offset = 0

    def seek(self, offset: int, /) -> int:
        self._offset = offset
        return offset

    def write(self, data: bytes, /) -> int:
        self.written += len(data)
        self.size = max(self.size, self._offset + len(data))
        return len(data)

    def truncate(self, size: int, /) -> int:
        self.size = size
        return size


# Names

_txids = st.builds("{:016x}".format, _small | _u64)
_names = st.builds("{}{}-{}.ltx".format, st.sampled_from(["", "0000/", "ltx/0/", "//"]), _txids, _txids)
_directories = st.builds(
    "{}{}".format,
    st.sampled_from(["", "ltx/", "LTX/", "/"]),
    st.sampled_from(["0", "0009", "-001", "+1", "١"]) | odd.texts,
)
names = st.tuples(
    st.sampled_from(["s3://bucket/log", "file:///log"]),
    _directories | odd.texts,
    st.lists(odd.spoilt(_names) | _names | odd.texts, max_size=8),
    _small,
)


def name(case: tuple[str, str, list[str], int]) -> None:
    """What a listing shows becomes objects in order, or is none of the log's."""
    url, directory, shown, after = case
    found = ObjectNames(url)
    level = found.level_of(directory)
    assert level is None or (level >= 0 and found.directory(level) == directory)
    assert isinstance(found.misnamed([directory, *shown]), str)
    objects: list[LogObject] = []
    for number, each in enumerate(shown):
        if item := found.object_of(number % 3, ObjectInfo(each, number, _THEN)):
            assert each.endswith(found.name_of(item).rpartition("/")[2])
            assert 1 <= item.min_txid <= item.max_txid
            objects.append(item)
    _check_links(chain(objects, after), after)
    _check_links(restorable(objects), 0)


def _check_links(links: list[Any], end: int) -> None:
    """No gap, and each leads on."""
    for link in links:
        assert link.min_txid <= end + 1 <= link.max_txid
        end = link.max_txid
