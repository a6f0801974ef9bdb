"""What the project's pages tell people to type."""

from collections.abc import Iterator
from typing import NamedTuple

from tests.e2e.processes import ROOT


class Block(NamedTuple):
    chapter: str
    name: str  # its heading, with a number from the second of one heading on
    script: str


def blocks(page: str) -> Iterator[Block]:
    """Every shell block of a page."""
    seen: dict[str, int] = {}
    chapter, heading, fence, lines = "", "", "", list[str]()
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith("```"):
            if fence == "```sh":
                seen[heading] = seen.get(heading, 0) + 1
                name = heading + (f" ({seen[heading]})" if seen[heading] > 1 else "")
                yield Block(chapter, name, "\n".join(lines))
            fence, lines = ("" if fence else line), []
        elif fence:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
            chapter = heading if line.startswith("## ") else chapter
