import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from handler import __main__ as server
from handler.asgi import ROUTES
from handler.openapi import build_openapi
from infra import database
from infra.settings import Settings

ROOT = Path(__file__).parent.parent
METHODS = ("get", "post", "put", "patch", "delete")
FORBIDDEN = {
    "core": {"handler", "infra", "starlette", "mangum", "obstore", "aws_lambda_powertools", "os", "sqlite3"},
    # Python's sqlite3 is over the distribution's SQLite, and two of them in one process undo each other's file locks
    "infra": {"handler", "starlette", "mangum", "sqlite3"},
    "handler": {"sqlite3"},
    "tests/checker": {"handler", "core", "infra"},
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_dependencies_point_one_way(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(imports_of(path) & FORBIDDEN[package])
        for path in (ROOT / package).rglob("*.py")
        if imports_of(path) & FORBIDDEN[package]
    }
    assert wrong == {}


def test_checker_shares_no_code_with_what_it_checks() -> None:
    # nor by way of the helpers that it takes from other tests
    script = "import sys, tests.checker.__main__; print({name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) & {"handler", "core", "infra"} == set()


def test_every_setting_is_in_the_table() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    missing = [field.alias for field in Settings.model_fields.values() if f"| `{field.alias}` |" not in page]
    assert missing == []


def test_every_setting_reaches_the_container() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    # the image, the volume and the published port decide these
    fixed = {"DATABASE_PATH", "HOST", "PORT"}
    names = {str(field.alias) for field in Settings.model_fields.values()} - fixed
    missing = [
        name for name in sorted(names | {"AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"}) if f"      {name}:\n" not in compose
    ]
    assert missing == []


def test_sam_local_finds_the_compose_files_store() -> None:
    local = tomllib.loads((ROOT / "samconfig.toml").read_text())["local"]["global"]["parameters"]
    variables = json.loads((ROOT / local["env_vars"]).read_text())["Parameters"]
    compose = (ROOT / "docker-compose.yml").read_text()
    project = re.findall(r"^name: (\S+)$", compose, re.MULTILINE)
    assert [local["docker_network"]] == [f"{name}_default" for name in project]
    for variable in ("REPLICA_URL", "BACKUP_URL", "AWS_ENDPOINT_URL_S3"):
        assert f"      {variable}: {variables[variable]}\n" in compose


def test_times_are_within_what_is_promised() -> None:
    assert database._WATCH_SECONDS < 1  # the runbook: a shell's commit is in the log within a second
    assert server._STOP_SECONDS + 1 <= 10  # a stop ends within ten
    grace = re.findall(r"stop_grace_period: (\d+)s", (ROOT / "docker-compose.yml").read_text())
    assert [int(seconds) > 10 for seconds in grace] == [True]


def test_endpoints_are_coroutines() -> None:
    # a plain function would run on a new thread at each Lambda invocation, with a connection of its own
    for route in ROUTES:
        endpoints = [route.endpoint]
        if isinstance(route.endpoint, type):
            endpoints = [
                getattr(route.endpoint, method.lower()) for method in METHODS if hasattr(route.endpoint, method)
            ]
            assert endpoints
        assert all(inspect.iscoroutinefunction(endpoint) for endpoint in endpoints), route.path


def test_openapi_document_is_up_to_date() -> None:
    checked_in = json.loads((ROOT / "openapi.json").read_text())
    assert checked_in == build_openapi(ROUTES), "the API changed: run `make openapi` and commit openapi.json"
