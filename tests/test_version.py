"""Whatever shows a version shows core's."""

import json
import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from core import __version__
from handler.asgi import ROUTES
from handler.openapi.document import build_openapi
from handler.service import open_server_service
from infra.__main__ import main
from infra.settings import Settings

ROOT = Path(__file__).parent.parent


def test_version_is_one_of_semantic_versioning() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_changelog_begins_with_it() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert [
        line for line in headings if not re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d|Unreleased)", line)
    ] == []
    assert headings[0].startswith(f"[{__version__}] - ")
    assert [line for line in headings[1:] if line.endswith("Unreleased")] == []


def test_api_document_says_it() -> None:
    assert build_openapi(ROUTES)["info"]["version"] == __version__
    assert json.loads((ROOT / "openapi.json").read_text())["info"]["version"] == __version__


def test_commands_say_it_whatever_the_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "x")
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"cloud-native-poc {__version__}\n"


def test_log_says_it_at_the_start(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), closing(open_server_service(settings).database):
        pass
    assert f"cloud-native-poc {__version__} serves {settings.database_path}" in caplog.messages


@pytest.mark.skipif(not shutil.which("make"), reason="needs make, which is not in the image")
def test_make_prints_it_for_the_images() -> None:
    done = subprocess.run(["make", "--silent", "version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{__version__}\n"
