import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

import lz4.block
import pytest
from fastcrc.crc64 import go_iso
from hypothesis import given
from hypothesis import strategies as st

from core.errors import LogDamaged
from infra.clock import Clock
from infra.commitlog import ltx
from infra.commitlog.chain import write_pages
from infra.commitlog.log import open_log
from infra.commitlog.ltx import Header, Reader, decode_header, encode, lock_page
from infra.commitlog.raw_file import RawFile

MIB = 1024 * 1024
Pages = list[tuple[int, bytes]]

u64 = st.integers(0, 2**64 - 1)


@st.composite
def files(draw: st.DrawFn) -> tuple[Header, Pages]:
    page_size = draw(st.sampled_from([512, 1024, 4096, 65536]))
    low = draw(st.integers(2, 2**63))
    numbers = sorted(draw(st.sets(st.integers(1, 1000), max_size=5)))
    pages = [(number, draw(st.binary(max_size=40)).ljust(page_size, b"\0")) for number in numbers]
    header = Header(
        page_size,
        draw(st.integers(max([1, *numbers]), 2**32 - 1)),
        low,
        draw(st.integers(low, 2**64 - 1)),
        draw(st.integers(0, 2**62)),
        draw(u64),
        draw(st.integers(1, 2**64 - 1)),
    )
    return header, pages


def chunked(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@given(files(), st.integers(1, 5000))
def test_what_was_encoded_is_decoded(file: tuple[Header, Pages], chunk: int) -> None:
    header, pages = file
    body, checksum = encode(header, pages)
    reader = Reader(chunked(bytes(body), chunk))
    assert reader.header == header == decode_header(bytes(body))
    assert list(reader.pages()) == pages
    assert reader.checksum == checksum


def small_file() -> bytes:
    pages = [(1, b"SQLite" + bytes(506)), (3, bytes(range(256)) * 2)]
    return bytes(encode(Header(512, 7, 5, 5, 1_700_000_000_000, 2**63 + 9, 42), pages)[0])


def read_all(body: bytes) -> tuple[Header, Pages]:
    reader = Reader([body])
    return reader.header, list(reader.pages())


def test_no_damaged_byte_changes_what_is_read() -> None:
    body = small_file()
    sound = read_all(body)
    undetected = 0
    for position in range(len(body)):
        for value in (body[position] ^ 1, body[position] ^ 0x80, 0, 255):
            if value == body[position]:
                continue
            damaged = body[:position] + bytes([value]) + body[position + 1 :]
            try:
                assert read_all(damaged) == sound  # another LZ4 spelling of the same page
                undetected += 1
            except LogDamaged:
                pass
    assert undetected < 20


@given(st.data())
def test_no_prefix_of_a_file_passes_for_the_file(data: st.DataObject) -> None:
    body = small_file()
    length = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(LogDamaged):
        read_all(body[:length])


def test_bytes_after_the_end_are_damage() -> None:
    with pytest.raises(LogDamaged, match="checksum"):
        read_all(small_file() + b"\0")


def snapshot(numbers: list[int], size: int) -> bytes:
    return bytes(encode(Header(512, size, 1, 4, 0), [(number, bytes(512)) for number in numbers])[0])


def test_snapshot_holds_every_page() -> None:
    assert len(read_all(snapshot([1, 2, 3], 3))[1]) == 3
    with pytest.raises(LogDamaged, match="page 3 where page 2 of 3"):
        read_all(snapshot([1, 3], 3))
    with pytest.raises(LogDamaged, match="ends before page 3"):
        read_all(snapshot([1, 2], 3))


def test_pages_ascend_within_the_database() -> None:
    for numbers in ([2, 1], [1, 1], [9]):
        body, _ = encode(Header(512, 8, 2, 2, 0), [(number, bytes(512)) for number in numbers])
        with pytest.raises(LogDamaged, match="where page"):
            read_all(bytes(body))


def test_lock_page_has_no_content() -> None:
    assert lock_page(4096) == 262145
    assert lock_page(65536) == 16385
    body, _ = encode(Header(65536, 20_000, 2, 2, 0), [(16385, bytes(65536))])
    with pytest.raises(LogDamaged, match="page 16385"):
        read_all(bytes(body))
    body, _ = encode(Header(65536, 16386, 2, 2, 0), [(16384, bytes(65536)), (16386, bytes(65536))])
    assert [number for number, _ in read_all(bytes(body))[1]] == [16384, 16386]


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, b"LTX9", "does not begin with"),
        (4, b"\x01", "unknown flags"),
        (8, (1000).to_bytes(4, "big"), "page size of 1000"),
        (16, bytes(8), "TXID range 0-5"),
        (40, b"\x80", "impossible header"),
    ],
)
def test_impossible_header_is_refused(position: int, value: bytes, message: str) -> None:
    body = small_file()
    with pytest.raises(LogDamaged, match=message):
        decode_header(body[:position] + value + body[position + len(value) :])


def test_fields_of_other_writers_are_not_taken_for_ours() -> None:
    body = bytearray(small_file())
    body[56:64] = (4096).to_bytes(8, "big")  # a WAL size: Litestream wrote this, with real salts
    assert decode_header(bytes(body)).predecessor == 0


def test_varints_of_the_page_index() -> None:
    found = b"".join(map(ltx._varint, (0, 127, 128, 300, 2**14 - 1, 2**14, 2**21 + 5)))
    assert found == b"\x00\x7f\x80\x01\xac\x02\xff\x7f\x80\x80\x01\x85\x80\x80\x01"


# Small objects that stand for much


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_what_comes_after_the_pages_may_be_of_any_length() -> None:
    start = encode(Header(512, 1, 2, 2, 0), [])[0][: ltx.HEADER_SIZE] + bytes(6)
    with little_memory(), pytest.raises(LogDamaged, match="checksum"):
        list(Reader(chain([bytes(start)], repeat(bytes(MIB), 200))).pages())


def test_page_is_uncompressed_to_its_size_and_no_further() -> None:
    block = lz4.block.compress(bytes(16 * MIB), store_size=False)
    start = encode(Header(512, 1, 2, 2, 0), [])[0][: ltx.HEADER_SIZE]
    for length in (len(block), 2**32 - 1):
        body = bytes(start) + struct.pack(">IHI", 1, 1, length) + block
        with little_memory(), pytest.raises(LogDamaged, match=r"cannot be uncompressed|bytes for page 1"):
            list(Reader([body]).pages())


@pytest.mark.parametrize("numbers", [[], [1], [2**32 - 2]])
def test_object_that_makes_a_database_of_terabytes_is_refused(tmp_path: Path, numbers: list[int]) -> None:
    body, _ = encode(Header(65536, 2**32 - 1, 2, 2, 0, 0, 42), [(number, bytes(65536)) for number in numbers])
    path = tmp_path / "app.db"
    reader = Reader([bytes(body)])
    with path.open("w+b") as file, pytest.raises(LogDamaged, match="longer than what it holds"):
        write_pages(file, reader.header, reader.pages(), 0)
    assert path.stat().st_size <= 65536


def test_object_of_a_log_that_makes_a_database_of_terabytes_is_refused_by_name(tmp_path: Path) -> None:
    url, directory = (tmp_path / "log").as_uri(), tmp_path / "log" / "ltx" / "0"
    directory.mkdir(parents=True)
    first, checksum = encode(Header(512, 1, 1, 1, 0, 0, 41, 7), [(1, bytes(512))])
    (directory / f"{1:016x}-{1:016x}.ltx").write_bytes(first)
    second, _ = encode(Header(512, 2**32 - 1, 2, 2, 0, checksum, 42, 7), [])
    (directory / f"{2:016x}-{2:016x}.ltx").write_bytes(second)
    with pytest.raises(LogDamaged, match=r"0000000000000002\.ltx makes the database .* longer"):
        open_log(url, Clock()).restore(tmp_path / "app.db")


def test_checksum_so_far_is_that_of_all_pages_so_far() -> None:
    pages = [(number, number.to_bytes(2, "big") * 512) for number in range(1, 1001)]
    body = bytearray()
    writer = ltx.Writer(Header(1024, 1000, 1, 1, 0), body.extend)
    written = []
    for number, page in pages:
        writer.add(number, page)
        written.append((writer.offset, writer.crc))
    writer.end()
    reader = Reader(chunked(bytes(body), 777))
    read = [(reader.offset, reader.crc) for _ in reader.pages()]
    crc, expected = go_iso(body[: ltx.HEADER_SIZE]), []
    for (_, page), (offset, _) in zip(pages, [(ltx.HEADER_SIZE, 0), *written], strict=False):
        crc = go_iso(bytes(body[offset : offset + ltx.PAGE_HEAD.size]) + page, crc)
        expected.append(crc)
    assert read == written
    assert [found for _, found in read] == expected
    unasked, checksum = encode(Header(1024, 1000, 1, 1, 0), pages)
    assert unasked == body
    end = bytes(body[written[-1][0] : -ltx.CHECKSUM_SIZE])
    assert checksum == go_iso(end, crc) | 1 << 63


@pytest.mark.parametrize("page_size", [512, 1024, 65536])
def test_pages_beside_each_other_are_written_where_they_belong(tmp_path: Path, page_size: int) -> None:
    """By SQLite's file layer as well, which takes no 128 KiB at once."""
    numbers = [*range(1, 600), 601, 602, *range(700, 1000)]
    pages = [(number, number.to_bytes(2, "big") * (page_size // 2)) for number in numbers]
    header = Header(page_size, 1000, 2, 2, 0)
    path, raw = tmp_path / "app.db", tmp_path / "raw.db"
    raw.touch()
    with path.open("xb") as file, RawFile(raw) as raw_file:
        assert write_pages(file, header, pages, 0) == write_pages(raw_file, header, pages, 0) == 1000 * page_size
    expected = bytearray(1000 * page_size)
    for number, page in pages:
        expected[(number - 1) * page_size : number * page_size] = page
    assert path.read_bytes() == raw.read_bytes() == expected
