"""The project installed as a package, away from its sources."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import httpx2
import pytest

from core import __version__
from tests.e2e.checkout import cloned
from tests.e2e.processes import ROOT, StartProcess

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(directory), str(cloned(directory / "project"))], check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The `bin` of an environment that has the wheel, and what it needs from the environment of the tests."""
    environment = wheel.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (packages,) = environment.glob("lib/*/site-packages")
    # a .pth in a place that a .pth names is not read, so the sources are not found by it
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def test_wheel_has_the_packages_whole_and_nothing_else(wheel: Path) -> None:
    packages = ("core", "handler", "infra")
    sources = {str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name).rglob("*") if path.is_file()}
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {name for name in sources if "__pycache__" not in name and not name.startswith("infra/monitoring/")}
    assert {f"{name}/py.typed" for name in packages} < names
    assert wheel.name == f"cloud_native_poc-{__version__}-py3-none-any.whl"


def test_wheel_asks_for_what_the_short_list_names(wheel: Path) -> None:
    metadata = ZipFile(wheel).read(f"cloud_native_poc-{__version__}.dist-info/METADATA").decode()
    asked = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert asked == [line for line in (ROOT / "requirements.in").read_text().splitlines() if line[0] != "#"]


def test_console_script_is_the_commands(installed: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / "cloud-native-poc"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert run("--version").stdout == f"cloud-native-poc {__version__}\n"
    assert run("--help").stdout.startswith("usage: cloud-native-poc ")
    assert "complete -o" in run("--print-completion", "bash").stdout
    assert run("restore").returncode == 2
    assert run("verify", "latest").returncode == 1


def test_service_and_its_migrations_come_along(installed: Path, start_process: StartProcess, tmp_path: Path) -> None:
    process = start_process("env", "-C", str(tmp_path), str(installed / "python"), "-m", "handler")
    url = process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
    assert httpx2.post(f"{url}/api/items", json={"name": "x"}, trust_env=False).status_code == 201
