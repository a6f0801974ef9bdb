"""Every link within the project's pages leads somewhere, and the runbook's contents lead to each of its procedures."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = (".github", "benchmarks", "core", "docs", "handler", "infra", "scripts", "tests")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
RUNBOOK = ROOT / "RUNBOOK.md"
# In this order, with the commands after the first
SHAPE = ("**When**: ", "**You must see**: ", "**To undo**: ")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> list[str]:
    """The page's anchors, as GitHub makes them of headings, and those that it sets itself."""
    seen: Counter[str] = Counter()
    found = []
    for heading in re.findall(r"^#+ (.*?)#*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found + re.findall(r'<a id="([^"]+)"', prose(page))


def links(text: str) -> list[str]:
    """Where the text links to within the project."""
    text = re.sub(r"`[^`]*`", "", text)
    found = re.findall(r"\]\(\s*<?([^)>\s]*)", text) + re.findall(r"^\[[^]]+\]: *(\S+)", text, re.MULTILINE)
    found += re.findall(r"(?:href|src)=\"([^\"]*)\"", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def leads_somewhere(link: str, page: Path) -> bool:
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return False
    return not anchor or (target.suffix == ".md" and anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    found = links(prose(page))
    if not (ROOT / ".github").exists():  # the workflows are not in the image
        found = [link for link in found if ".github/" not in link]
    assert [link for link in found if not leads_somewhere(link, page)] == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(prose(ROOT / "README.md"))}
    assert [name_of(page) for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if page not in linked] == [
        "README.md"
    ]


# The runbook


def test_runbook_begins_with_what_an_emergency_looks_like() -> None:
    first = prose(RUNBOOK).partition("\n## ")[0].removeprefix("# Runbook\n\n").splitlines()
    head, _, *rows = [line for line in first if line.startswith("|")]
    assert first[0] == head
    assert [row for row in rows if not links(row)] == []
    assert len(first) <= 30


def test_every_heading_of_the_runbook_is_one_jump_from_its_contents() -> None:
    start, contents, *_ = re.split(r"^## ", prose(RUNBOOK), flags=re.MULTILINE)
    reached = {link.removeprefix("#") for link in links(start + contents)}
    assert [anchor for anchor in anchors(RUNBOOK) if anchor not in {"runbook", "contents"} | reached] == []


def procedures() -> Iterator[tuple[str, str]]:
    """Each section with commands, under its heading."""
    for page, level in ((RUNBOOK, "###? "), (ROOT / "docs/lambda.md", "### ")):
        for section in re.split(f"^{level}", page.read_text(), flags=re.MULTILINE)[1:]:
            heading = section.partition("\n")[0]
            if "```sh\n" in section and heading != "Evidence":
                yield f"{page.name}: {heading}", section


def is_in_shape(section: str) -> bool:
    when, see, undo = (section.find(f"\n{label}") for label in SHAPE)
    return 0 < when < section.index("\n```sh\n") < see < undo


def test_every_procedure_has_the_same_shape() -> None:
    found = dict(procedures())
    assert len(found) > 40
    assert [heading for heading, section in found.items() if not is_in_shape(section)] == []
