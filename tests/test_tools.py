"""What editors, git and GitHub read of this project."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import Settings

ROOT = Path(__file__).parent.parent
FORMS = sorted(path for path in (ROOT / ".github").glob("ISSUE_TEMPLATE/*.yml") if path.name != "config.yml")
PAGES = [*FORMS, *(ROOT / ".github").glob("*.md")]


def verbs() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_dev_container_sets_itself_up_and_shows_the_service() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert re.fullmatch(r"mcr\.microsoft\.com/devcontainers/python:3\.\d+", container["image"])
    make, verb = container["postCreateCommand"].split()
    assert make == "make"
    assert verb in verbs()
    port = Settings.model_fields["port"].default
    assert container["forwardPorts"] == [port]
    assert container["portsAttributes"].keys() == {str(port)}


def test_commit_hooks_are_verbs_of_the_project() -> None:
    """So the tools have the versions that the project pins."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"].split()[0] for hook in repository["hooks"]] == ["make"] * len(repository["hooks"])
    named = {verb for hook in repository["hooks"] for verb in hook["entry"].split()[1:]}
    assert {"lint", "type"} <= named <= verbs()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_form_is_one_that_github_takes(path: Path) -> None:
    form: dict[str, Any] = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "title", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in fields)
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(not FORMS, reason="not in the image")
def test_whoever_reports_a_fault_is_asked_for_what_helps() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    asked = {field["id"]: field["attributes"].get("description") for field in form["body"] if "id" in field}
    assert "python -m infra --version" in asked["version"]
    assert "request_id" in asked["log"]
    assert "python -m infra status" in asked["status"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_page_on_github_names_verbs_and_files_that_are_there(path: Path) -> None:
    text = path.read_text()
    assert {verb for line in re.findall(r"`make ([a-z0-9 -]+)`", text) for verb in line.split()} <= verbs()
    assert [name for name in re.findall(r"\(\.\./blob/main/([\w./-]+)", text) if not (ROOT / name).exists()] == []
