"""Sidecars, and parts of snapshots, that are not what they should be."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastcrc.crc64 import go_iso

from infra.commitlog import ltx
from infra.commitlog.paging.page_index import PageIndex

SIDECAR = ".pages"
SNAPSHOT = ".ltx"
KINDS = ("flipped", "cut", "unknown", "gone", "older", "twin")  # of sidecars
_VERSION = slice(8, 12)  # of a sidecar
_HEAD = 12 + ltx.HEADER_SIZE + 24  # bytes, of a sidecar: what comes first, as long as it is, is what sizes are said in
_CHECKSUM = 8  # bytes, the last ones


def spoilt(kind: str, sidecar: bytes, snapshot: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """What a reader finds instead of the sidecar of a snapshot. `others`: sidecars of others."""
    body = bytearray(sidecar)
    match kind:
        case "flipped":
            return flipped(sidecar, rng)
        case "cut":
            del body[rng.randrange(len(body)) :]
        case "unknown":
            return _of_another_version(sidecar, rng)
        case "older" if others:
            return rng.choice(others)
        case "twin":
            return _of_twin(sidecar, snapshot)
    return bytes(body)


def _of_another_version(sidecar: bytes, rng: random.Random) -> bytes:
    """Whole, and nobody of this release knows what it says."""
    body = bytearray(sidecar[:-_CHECKSUM])
    body[_VERSION] = rng.choice((0, 2, 1 << 31)).to_bytes(4, "big")
    body[_HEAD:] = bytes(byte ^ 0x55 for byte in body[_HEAD:])
    return bytes(body) + go_iso(body).to_bytes(_CHECKSUM, "big")


def _of_twin(sidecar: bytes, snapshot: bytes) -> bytes:
    """The sidecar of a snapshot of the same name and size, of another date, and with its last two pages swapped."""
    reader = ltx.Reader([snapshot])
    pages = list(reader.pages())
    if len(pages) > 1:
        (one, content), (other, another) = pages[-2:]
        pages[-2:] = (one, another), (other, content)
    twin, _ = ltx.encode(replace(reader.header, timestamp=reader.header.timestamp + 1), pages)
    index = PageIndex.read_through([bytes(twin)])
    index._upper = PageIndex.decode(sidecar)._upper
    return index.encode()


def flipped(body: bytes, rng: random.Random) -> bytes:
    """One bit of it is another."""
    changed = bytearray(body)
    changed[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damaged(body: bytes, another: Callable[[], bytes], rng: random.Random) -> bytes:
    """What arrives instead of a part of a snapshot: other bits, not all of it, or another part."""
    match rng.randrange(3):
        case 0 if body:
            return flipped(body, rng)
        case 1:
            return body[: rng.randrange(len(body) or 1)]
        case _:
            return another()
