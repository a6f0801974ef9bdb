import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from handler import __main__ as server
from handler.asgi import ROUTES
from handler.openapi.document import build_openapi
from infra.settings import Settings
from infra.sqlite import write_queue

ROOT = Path(__file__).parent.parent
METHODS = ("get", "post", "put", "patch", "delete")
FORBIDDEN = {
    "core": {"handler", "infra", "starlette", "mangum", "obstore", "aws_lambda_powertools", "os", "sqlite3"},
    # Python's sqlite3 is over the distribution's SQLite, and two of them in one process undo each other's file locks
    "infra": {"handler", "starlette", "mangum", "sqlite3"},
    "handler": {"sqlite3"},
    "tests/checker": {"handler", "core", "infra"},
}
ENGINE = ROOT / "infra" / "commitlog"
ENGINES_SURFACE = {"infra.commitlog", "infra.commitlog.upkeep"}
# All that the engine may know of the rest; what these import in turn is theirs
ENGINE_MAY_IMPORT = {
    "core.errors",
    "core.statements",
    "infra.clock",
    "infra.disk.durable",
    "infra.disk.ownership",
    "infra.progress",
    "infra.sqlite_errors",
    "infra.storage.object_store",
}
# and never by any way
UNKNOWN_TO_THE_ENGINE = {"infra.settings", "infra.backups", "infra.maintenance", "infra.operators", "infra.telemetry"}
OURS = ("core", "handler", "infra")


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def modules_of(path: Path) -> set[str]:
    """Our own modules that a file imports, with the names that are modules themselves."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = str(node.module)
            for name in node.names:
                inside = ROOT / module.replace(".", "/") / name.name
                is_module = inside.is_dir() or inside.with_suffix(".py").exists()
                found.add(f"{module}.{name.name}" if is_module else module)
    return {module for module in found if module.partition(".")[0] in OURS}


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def reached_into(path: Path) -> list[str]:
    """What a file takes of the engine otherwise than by name from its surface."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):  # whoever has the package has all that is in it
            wrong += [name.name for name in node.names if name.name == "infra" or is_in(name.name, "infra.commitlog")]
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            offered = import_module(module).__all__ if module in ENGINES_SURFACE else []
            names = [f"{module}.{name.name}" for name in node.names if name.name not in offered]
            wrong += [name for name in names if is_in(name, "infra.commitlog")]
    return wrong


def test_engine_imports_only_what_is_named() -> None:
    outside = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in ENGINE.rglob("*.py")
        if (wrong := {m for m in modules_of(path) if not is_in(m, "infra.commitlog")} - ENGINE_MAY_IMPORT)
    }
    assert outside == {}
    others = {module for path in ENGINE.rglob("*.py") for module in imports_of(path)} - {
        *OURS,
        *sys.stdlib_module_names,
    }
    assert others == {"apsw", "fastcrc", "lz4", "peewee", "playhouse"}


def test_engine_is_loaded_without_the_house_around_it() -> None:
    script = "import sys, infra.commitlog, infra.commitlog.upkeep; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded: list[str] = ast.literal_eval(done.stdout)
    assert [m for m in loaded for name in UNKNOWN_TO_THE_ENGINE if is_in(m, name)] == []


def test_everybody_else_uses_the_engines_surface() -> None:
    deeper = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for folder in (*OURS, "benchmarks", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if not path.is_relative_to(ENGINE) and (wrong := reached_into(path))
    }
    assert deeper == {}


def test_tests_of_the_others_take_from_the_surface_what_it_has() -> None:
    offered = {name for surface in ENGINES_SURFACE for name in import_module(surface).__all__}
    deeper = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "tests").rglob("*.py")
        if not path.is_relative_to(ROOT / "tests" / "infra" / "commitlog")
        for name in reached_into(path)
        if name.rpartition(".")[2] in offered
    ]
    assert deeper == []


@pytest.mark.parametrize(
    "line",
    [
        "from infra.commitlog.vfs import WalFile",
        "from infra.commitlog import vfs",
        "from infra.commitlog import at_rest",
        "from infra.commitlog import Committer",
        "from infra.commitlog.upkeep import compactor",
        "from infra import commitlog",
        "import infra.commitlog",
        "import infra.commitlog.vfs as vfs",
        "import infra",
    ],
)
def test_no_way_around_the_engines_surface(line: str, tmp_path: Path) -> None:
    (tmp_path / "house.py").write_text(line)
    assert reached_into(tmp_path / "house.py")


def test_methods_that_the_code_names_are_there() -> None:
    sources = {path: path.read_text() for folder in OURS for path in (ROOT / folder).rglob("*.py")}
    classes = {
        node.name: ast.unparse(node)
        for text in sources.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    }
    gone = [
        f"{path.relative_to(ROOT)}: {owner}.{name}"
        for path, text in sources.items()
        for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)`", text)
        if owner in classes and not re.search(rf"\b{name}\b", classes[owner])
    ]
    assert gone == []


# What metrics ask for is said once, by the Protocol
@pytest.mark.parametrize(
    "room", ["backups", "commitlog", "disk", "maintenance", "moving", "objectives", "operators", "storage"]
)
def test_everything_public_says_what_it_does(room: str) -> None:
    silent = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "infra" / room).rglob("*.py")
        for name in silent_names(ast.parse(path.read_text()))
    ]
    assert silent == []


def silent_names(node: ast.Module | ast.ClassDef) -> list[str]:
    """Public classes and functions without a docstring; what a Protocol asks for is said where it is implemented."""
    found = []
    for part in node.body:
        if not isinstance(part, ast.FunctionDef | ast.ClassDef) or part.name.startswith("_"):
            continue
        is_attribute = any("property" in ast.unparse(decorator) for decorator in part.decorator_list)
        if not (ast.get_docstring(part) or is_attribute):
            found.append(part.name)
        if isinstance(part, ast.ClassDef) and "Protocol" not in map(ast.unparse, part.bases):
            found += [f"{part.name}.{name}" for name in silent_names(part)]
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
    # the image, the volume and the published port decide these, and no container has an event or a file of Lambda's
    fixed = {"DATABASE_PATH", "HOST", "PORT", "IAM_OPS_ARNS", "PAGED_ABOVE_MB", "PAGE_CACHE_MB"}
    names = {str(field.alias) for field in Settings.model_fields.values()} - fixed
    missing = [
        name for name in sorted(names | {"AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"}) if f"\n      {name}:" not in compose
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
    assert write_queue.WATCH_SECONDS < 1  # the runbook: a shell's commit is in the log within a second
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
