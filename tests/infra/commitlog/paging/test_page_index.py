import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

import pytest
from fastcrc.crc64 import go_iso

from core.errors import LogDamaged
from infra.commitlog import ltx
from infra.commitlog.chain import Position
from infra.commitlog.ltx import Header, lock_page
from infra.commitlog.paging.page_index import BlockNotes, PageIndex, UnknownVersion
from infra.commitlog.paging.upper_pages import compressed

Pages = list[tuple[int, bytes]]
HEADER = Header(512, 300, 1, 7, 1_700_000_000_000, 0, 2**63 + 42, 99)
MIB = 1024 * 1024


def snapshot(header: Header = HEADER, seed: int = 1) -> tuple[bytes, Pages]:
    """Its object, and its pages."""
    draw = random.Random(seed)
    numbers = [number for number in range(1, header.size + 1) if number != lock_page(header.page_size)]
    pages = [(number, draw.randbytes(100).ljust(header.page_size, b"\0")) for number in numbers]
    return bytes(ltx.encode(header, pages)[0]), pages


def with_upper_pages(body: bytes, pages: Pages) -> PageIndex:
    reader = ltx.Reader([body])
    blocks = BlockNotes(reader)
    for number, _ in reader.pages():
        blocks.note(number)
    return blocks.index(reader.checksum, compressed(pages, reader.header.page_size, MIB))


def read_back(index: PageIndex, body: bytes) -> Pages:
    return list(chain.from_iterable(index.pages(n, part(index, body, n)) for n in range(index.blocks)))


def part(index: PageIndex, body: bytes, block: int) -> bytes:
    begin, end = index.span(block, block)
    return body[begin:end]


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("size", [1, 2, 16, 17, 130])
@pytest.mark.parametrize("chunk", [1000, 100_000_000])
def test_every_page_is_found_in_its_block(page_size: int, size: int, chunk: int) -> None:
    body, pages = snapshot(replace(HEADER, page_size=page_size, size=size))
    chunks = (body[begin : begin + chunk] for begin in range(0, len(body), chunk))
    index = PageIndex.decode(PageIndex.read_through(chunks).encode())
    assert read_back(index, body) == pages
    assert index.pages_per_block == 65536 // page_size
    for number, page in pages:
        block = index.block_of(number)
        assert (number, page) in index.pages(block, part(index, body, block))
    assert index.span(0, index.blocks - 1) == (index.span(0, 0)[0], index.span(index.blocks - 1, index.blocks - 1)[1])


def test_what_it_says_of_the_snapshot() -> None:
    body, _ = snapshot()
    for index in (read := PageIndex.read_through([body])), PageIndex.decode(read.encode()):
        assert index.header == HEADER
        assert index.object_size == len(body)
        assert index.checksum == int.from_bytes(body[-8:], "big")
        assert index.position == Position(7, 2**63 + 42, 1_700_000_000_000, 99)
        assert index.blocks == 3
        assert index.upper(1) is None


def test_what_was_written_is_what_is_read() -> None:
    body, pages = snapshot()
    written = bytearray()
    writer = ltx.Writer(HEADER, written.extend)
    blocks = BlockNotes(writer)
    for number, page in pages:
        writer.add(number, page)
        blocks.note(number)
    index = blocks.index(writer.end())
    assert written == body
    assert index.encode() == PageIndex.read_through([body]).encode()


@pytest.mark.parametrize("beyond", [0, 1, 5])
def test_lock_page_is_left_out(beyond: int) -> None:
    lock = lock_page(65536)
    header = Header(65536, lock + beyond, 1, 7, 1)
    pages = ((number, number.to_bytes(65536, "big")) for number in range(1, lock + beyond + 1) if number != lock)
    body = bytes(ltx.encode(header, pages)[0])
    index = PageIndex.decode(PageIndex.read_through([body]).encode())
    assert index.blocks == lock - 1 + beyond
    for number in (1, lock - 1, *range(lock + 1, lock + beyond + 1)):
        block = index.block_of(number)
        assert index.pages(block, part(index, body, block)) == [(number, number.to_bytes(65536, "big"))]


def test_upper_pages_are_with_it() -> None:
    body, pages = snapshot()
    some = [pages[n] for n in (0, *range(40, 100, 2), 7)]
    index = PageIndex.decode(with_upper_pages(body, some).encode())
    assert [(number, index.upper(number)) for number, _ in some] == some
    assert index.upper(2) is None
    assert read_back(index, body) == pages


def test_every_flipped_byte_of_a_sidecar_is_noticed() -> None:
    body, pages = snapshot(replace(HEADER, size=140))
    data = with_upper_pages(body, pages[:20]).encode()
    for place in range(len(data)):
        with pytest.raises(LogDamaged):
            PageIndex.decode(flipped(data, place))


def test_flipped_byte_of_a_snapshot_never_shows_in_a_page() -> None:
    body, _ = snapshot(replace(HEADER, size=140))
    index = PageIndex.read_through([body])
    noticed = 0
    for block in range(index.blocks):
        begin, end = index.span(block, block)
        right = index.pages(block, body[begin:end])
        for place in range(end - begin):
            try:
                found = index.pages(block, flipped(body[begin:end], place))
            except LogDamaged:
                noticed += 1
            else:
                assert found == right  # LZ4 has more than one way to say the same
    end_of_pages = index.span(0, index.blocks - 1)[1]
    assert noticed > 0.95 * end_of_pages
    for place in (*range(ltx.HEADER_SIZE), *range(end_of_pages, len(body))):
        with pytest.raises(LogDamaged):
            PageIndex.read_through([flipped(body, place)])


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize("how", ["empty", "cut short", "longer", "of another block", "of another snapshot"])
def test_other_bytes_than_the_blocks_own_are_noticed(how: str) -> None:
    body, _ = snapshot()
    index = PageIndex.read_through([body])
    right = part(index, body, 1)
    wrong = {
        "empty": b"",
        "cut short": right[:-1],
        "longer": right + b"\0",
        "of another block": part(index, body, 0),
        "of another snapshot": part(index, snapshot(seed=2)[0], 1),
    }
    with pytest.raises(LogDamaged, match="block 1"):
        index.pages(1, wrong[how])
    assert index.pages(1, right)


@pytest.mark.parametrize("size", [0, 1, 8, 12, 100, 150, -9, -8, -1])
def test_cut_off_sidecar_is_noticed(size: int) -> None:
    data = PageIndex.read_through([snapshot()[0]]).encode()
    with pytest.raises(LogDamaged):
        PageIndex.decode(data[:size])


def test_longer_sidecar_is_noticed() -> None:
    data = PageIndex.read_through([snapshot()[0]]).encode()
    for more in (b"\0", data):
        with pytest.raises(LogDamaged):
            PageIndex.decode(data + more)


def test_sidecar_of_another_version_is_told_from_a_damaged_one() -> None:
    data = PageIndex.read_through([snapshot()[0]]).encode()
    with pytest.raises(UnknownVersion, match="version 2"):
        PageIndex.decode(data[:8] + struct.pack(">I", 2) + b"whatever comes then")


def test_only_a_snapshot_has_an_index() -> None:
    body, _ = ltx.encode(Header(512, 3, 5, 5, 1), [(1, bytes(512))])
    with pytest.raises(LogDamaged, match="no snapshot"):
        PageIndex.read_through([bytes(body)])


def test_snapshot_that_is_damaged_has_no_index() -> None:
    body, _ = snapshot()
    for wrong in (b"", body[:-1], body + b"\0", flipped(body, 5000)):
        with pytest.raises(LogDamaged):
            PageIndex.read_through([wrong])


def test_reading_through_a_snapshot_keeps_little_of_it() -> None:
    header = replace(HEADER, page_size=4096, size=30_000)
    draw = random.Random(1)
    shared = [draw.randbytes(4096) for _ in range(10)]
    written: list[bytes] = []
    ltx_writer = ltx.Writer(header, written.append)
    for number in range(1, header.size + 1):
        ltx_writer.add(number, shared[number % 10])
    ltx_writer.end()
    chunks: Iterator[bytes] = iter(written)
    tracemalloc.start()
    try:
        index = PageIndex.read_through(chunks)
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()
    assert index.blocks == 1875


@pytest.mark.parametrize(
    "contradict",
    [
        lambda body: body + b"\0",
        lambda body: body[:-1],
        lambda body: body[:112] + struct.pack(">Q", 1000) + body[120:],
        lambda body: body[:128] + struct.pack(">I", 2) + body[132:],
        lambda body: body[:128] + struct.pack(">I", 2**32 - 1) + body[132:],
        lambda body: body[:132] + struct.pack(">I", 2**32 - 1) + body[136:],
        lambda body: body[:12] + bytes(100) + body[112:],
        lambda body: body[:24] + bytes(4) + body[28:128] + bytes(8),
        lambda body: body[:136] + bytes(4) + body[140:],
    ],
    ids=[
        "more",
        "less",
        "a small object",
        "other blocks",
        "many blocks",
        "many upper pages",
        "no header",
        "no pages",
        "an empty block",
    ],
)
def test_sidecar_that_contradicts_itself_is_noticed(contradict: Callable[[bytes], bytes]) -> None:
    """Though it has the checksum of what it is: somebody else's program may have made it."""
    body, pages = snapshot()
    wrong = contradict(with_upper_pages(body, pages[:20]).encode()[:-8])
    with pytest.raises(LogDamaged):
        PageIndex.decode(wrong + struct.pack(">Q", go_iso(wrong)))
