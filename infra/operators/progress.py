"""Progress for a person at a terminal: a bar; plain lines when the output goes to a file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.progress import Progress, no_progress


@contextmanager
def progress_display(wanted: bool) -> Iterator[Progress]:
    """Give a function that shows progress on standard error, or nothing unless it is wanted."""
    if not wanted:
        yield no_progress
    elif sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[Progress]:
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def progress(phase: str, done: int, total: int) -> None:
        if phase not in bars:
            bars[phase] = tqdm(desc=phase, total=total, unit="B", unit_scale=True, unit_divisor=1024)
        bars[phase].update(done - bars[phase].n)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()


def _lines() -> Progress:
    def progress(phase: str, done: int, total: int) -> None:
        if done >= total:
            print(f"{phase}: {total:,} bytes", file=sys.stderr)

    return progress
