"""What the short lists ask for is what the long ones pin."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LISTS = sorted(path.stem for path in ROOT.glob("requirements*.in"))


def pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[.*\])?==([^\s;]+)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("name", LISTS)
def test_list_is_compiled(name: str) -> None:
    asked, compiled = pins(ROOT / f"{name}.in"), pins(ROOT / f"{name}.txt")
    assert asked
    assert asked.items() <= compiled.items(), f"{name}.in was changed: run `make requirements`"


@pytest.mark.parametrize("name", LISTS)
def test_every_package_has_its_hashes(name: str) -> None:
    lines = (ROOT / f"{name}.txt").read_text().splitlines()
    bare = [line for line, next in pairwise(lines) if line[0].isalnum() and not next.startswith("    --hash=sha256:")]
    assert bare == []


def test_tests_run_with_the_versions_that_images_have() -> None:
    assert pins(ROOT / "requirements.txt").items() <= pins(ROOT / "requirements-dev.txt").items()
