"""What the short lists ask for is what the long ones pin."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from zipfile import ZipFile

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


def installs() -> dict[str, list[str]]:
    """Every command that installs packages, by file, on one line each."""
    files = ["Makefile", "Dockerfile", ".ci/run", *(str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/*"))]
    files += [str(path.relative_to(ROOT)) for path in ROOT.glob(".github/workflows/*.yml")]
    texts = {name: (ROOT / name).read_text().replace("\\\n", " ") for name in files if (ROOT / name).is_file()}
    install = re.compile(r"^.*\b(?:pip3?|uv|pipx|npm) +(?:install|add|sync).*$", re.MULTILINE)
    commands = {name: install.findall(text) for name, text in texts.items()}
    return {name: found for name, found in commands.items() if found}


def test_nothing_is_installed_without_its_hash() -> None:
    found = installs()
    assert {"Makefile", "Dockerfile"} <= found.keys()
    bare = [line for lines in found.values() for line in lines if "--require-hashes" not in line]
    # which installs this project itself, and fetches nothing
    assert [line.partition(" ")[0] for line in bare] == ["PIP_HERE"]
    assert {"--no-deps", "--no-build-isolation"} <= set(bare[0].split())


def test_package_with_another_content_is_not_installed(tmp_path: Path) -> None:
    """By the options that the Makefile has."""
    metadata = "Metadata-Version: 2.1\nName: harmless\nVersion: 1.0\n"
    with ZipFile(tmp_path / "harmless-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("harmless-1.0.dist-info/METADATA", metadata)
        wheel.writestr("harmless-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("harmless-1.0.dist-info/RECORD", "")
    (tmp_path / "requirements.txt").write_text(f"harmless==1.0 --hash=sha256:{'0' * 64}\n")
    (options,) = re.findall(r"^PIP := pip (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    there = ["--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "out")]
    command = [sys.executable, "-m", "pip", *options.split(), *there, "-r", str(tmp_path / "requirements.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_every_check_asks_for_known_vulnerabilities_and_says_so_when_it_cannot() -> None:
    """A check may go on without a network, with a line that begins with SKIPPED; the daily one may not."""
    assert "make audit MAY_SKIP=1\n" in (ROOT / ".ci" / "run").read_text()
    daily = ROOT / ".github" / "workflows" / "audit.yml"
    if not daily.exists():
        pytest.skip("the workflows are not in the image")
    assert re.search(r"^ +- run: make audit$", daily.read_text(), re.MULTILINE)
    assert "schedule:" in daily.read_text()
