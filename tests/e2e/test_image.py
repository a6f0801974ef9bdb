"""What is in the images, and that they run with as few rights as a container can have."""

import json
import re
from collections.abc import Callable, Iterator

import httpx2
import pytest

from core import __version__
from infra.operators.shell_version import FIRST_SOUND
from tests.e2e.checkout import Checkout
from tests.e2e.emulator import Function, emulator_binary
from tests.e2e.processes import ROOT, free_port, until

pytestmark = pytest.mark.e2e

HARDENED = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges"
SERVER, LAMBDA = "cloud-native-poc:latest", "cloud-native-poc:lambda-e2e"
# What an import compiles anew at every start, because no compiled file is there or it does not fit
UNCOMPILED = """
import importlib, importlib.util, os, sys
[importlib.import_module(name) for name in sys.argv[1:]]
specs = [module.__spec__ for module in list(sys.modules.values()) if getattr(module, "__spec__", None)]

def fits(spec):
    if not os.path.exists(spec.cached):
        return False
    with open(spec.cached, "rb") as file:
        header = file.read(16)
    source = os.stat(spec.origin)
    expected = [(int(source.st_mtime) & 0xFFFFFFFF), (source.st_size & 0xFFFFFFFF)]
    return header[:4] == importlib.util.MAGIC_NUMBER and [
        int.from_bytes(header[start : start + 4], "little") for start in (8, 12)] == expected

checked = [spec for spec in specs if spec.cached]
print(len(checked) > 300, [spec.name for spec in checked if not fits(spec)])
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def images(checkout: Checkout) -> Iterator[None]:
    checkout.sh("make build")
    arguments = "--build-arg VERSION=$(make version) --build-arg REVISION=$(git rev-parse HEAD)"
    checkout.sh(f"docker buildx build --load --target lambda {arguments} --tag {LAMBDA} .")
    yield
    checkout.sh(f"docker rmi {LAMBDA}")


@pytest.fixture
def run(images: None, checkout: Checkout) -> Iterator[Run]:
    """Starts a container in the background; its id."""
    started: list[str] = []

    def start(options: str) -> str:
        started.append(checkout.sh(f"docker run --detach {options}").strip())
        return started[-1]

    yield start
    for container in started:
        checkout.sh(f"docker rm --force --volumes {container}")


def inside(checkout: Checkout, image: str, script: str, options: str = "") -> str:
    """What a script prints there, typed by root unless `options` name another user."""
    return checkout.sh(
        f"docker run --rm --user 0 --network none --entrypoint sh {options} {image} -c '{script}'"
    ).strip()


@pytest.mark.parametrize("image", [SERVER, LAMBDA])
def test_no_compilers_caches_or_tests(images: None, checkout: Checkout, image: str) -> None:
    tools = "for tool in python gcc cc g++ make ld git; do command -v $tool || true; done"
    assert inside(checkout, image, tools) == "/usr/local/bin/python"
    packages = '$(python -c "import sysconfig; print(sysconfig.get_path(\\"purelib\\"))")'
    assert "starlette" in inside(checkout, image, f"ls {packages}").split()
    assert inside(checkout, image, f"find /app {packages} -type d -name test -o -type d -name tests") == ""
    caches = "/root/.cache /var/cache/apt/archives /var/lib/apt/lists"
    assert inside(checkout, image, f"find {caches} -type f 2>/dev/null || true") == ""
    assert inside(checkout, image, "ls /app").split() == ["core", *["data"] * (image == SERVER), "handler", "infra"]


@pytest.mark.parametrize(
    ("image", "modules", "settings"),
    [
        (SERVER, "handler.__main__ handler.asgi handler.docs infra.__main__ http.client", ""),
        (
            LAMBDA,
            "handler.aws_lambda awslambdaric.bootstrap",
            "-e AWS_LAMBDA_FUNCTION_NAME=f -e REPLICA_URL=file:///tmp/log -e AUTH_MODE=none",
        ),
    ],
)
def test_nothing_is_compiled_at_a_start(
    images: None, checkout: Checkout, image: str, modules: str, settings: str
) -> None:
    found = checkout.sh(
        f"docker run --rm {HARDENED} --network none {settings} --entrypoint python {image} -c '{UNCOMPILED}' {modules}"
    )
    assert found.splitlines()[-1] == "True []"  # after the function's log


@pytest.mark.parametrize("image", [SERVER, LAMBDA])
def test_nothing_is_installed_but_what_is_pinned(images: None, checkout: Checkout, image: str) -> None:
    installed = set(inside(checkout, image, "pip list --format freeze").lower().replace("_", "-").split())
    names = ["requirements.txt", "requirements-postgres.txt", *(["requirements-otel.txt"] if image == SERVER else [])]
    lines = [line for name in names for line in (ROOT / name).read_text().lower().splitlines()]
    pinned = {line.split()[0] for line in lines if line[:1].isalnum() and not re.search("win32|< '3.13'", line)}
    assert {name for name in installed if not name.startswith("pip==")} == pinned


# The id that every SQLite has in it begins with its date, whatever its file is called
SQLITES = """
import pathlib, re
ids = set()
for top in ("/usr", "/opt", "/app", "/lib", "/bin"):
    for path in pathlib.Path(top).rglob("*"):
        if path.is_file() and path.stat().st_size > 100_000:
            ids |= set(re.findall(rb"20[0-9]{2}-[01][0-9]-[0-3][0-9] [0-9:]{8} [0-9a-f]{64}", path.read_bytes()))
import apsw
print(apsw.sqlite_lib_version(), ids == {apsw.sqlite3_sourceid().encode()}, ids)
"""


@pytest.mark.parametrize("image", [SERVER, LAMBDA])
def test_the_only_sqlite_is_the_services_own(images: None, checkout: Checkout, image: str) -> None:
    found = checkout.sh(f"docker run --rm --network none --entrypoint python {image} -c '{SQLITES}'").split()
    assert tuple(map(int, found[0].split("."))) >= FIRST_SOUND
    assert found[1] == "True", found


def test_shell_is_of_the_same_sqlite(images: None, checkout: Checkout) -> None:
    ids = 'python -c "import apsw; print(apsw.sqlite_lib_version(), apsw.sqlite3_sourceid())"'
    shell, service = inside(checkout, SERVER, f"sqlite3 -version; {ids}").splitlines()
    assert shell.startswith(service)


def test_user_owns_nothing_but_the_data(images: None, checkout: Checkout) -> None:
    image = checkout.inspect(SERVER)["Config"]
    assert image["User"] == "1000:1000"
    search = "find / -xdev -writable -type d 2>/dev/null || true"
    found = inside(checkout, SERVER, search, "--user 1000:1000").split()
    ours = {path for path in found if not path.startswith(("/proc", "/dev"))}
    assert {"/app/data", "/tmp"} <= ours <= {"/app/data", "/tmp", "/var/tmp", "/run/lock"}


@pytest.mark.parametrize("image", [SERVER, LAMBDA])
def test_labels_say_what_it_is(images: None, checkout: Checkout, image: str) -> None:
    labels = checkout.inspect(image)["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == checkout.sh("git rev-parse HEAD").strip()
    assert labels["org.opencontainers.image.licenses"] == "MIT"


def test_base_image_can_be_another(checkout: Checkout) -> None:
    build = "docker buildx build --output type=cacheonly --target lambda"
    base = "docker image inspect python:3.13-slim >/dev/null 2>&1 || docker pull --quiet python:3.13-slim"
    checkout.sh(f"{base}; docker tag python:3.13-slim base-e2e:latest")
    try:
        checkout.sh(f"{build} --build-arg BASE_IMAGE=base-e2e:latest .")
    finally:
        checkout.sh("docker rmi base-e2e:latest")
    # And by a digest, which is what the builder then asks for
    pinned = f"python:3.13-slim@sha256:{'0' * 64}"
    failed = checkout.run("make build", BASE_IMAGE=pinned)
    assert failed.returncode == 2
    assert f"load metadata for docker.io/library/{pinned}" in failed.stdout + failed.stderr


def test_server_runs_with_no_rights_at_all(run: Run, checkout: Checkout) -> None:
    port = free_port()
    # A proxy in the environment is not for the health check
    container = run(
        f"{HARDENED} -p 127.0.0.1:{port}:8000 -e AUTH_MODE=none -e http_proxy=http://127.0.0.1:9 "
        f"--health-interval 1s {SERVER}"
    )
    checkout.wait_for("healthy", container)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert client.post("/api/items", json={"name": "Lamp"}).status_code == 201
        assert client.get("/docs/swagger-ui-bundle.js").status_code == 200
        assert "SwaggerUIBundle" in client.get("/docs/start.js").text
    assert json.loads(checkout.sh(f"docker exec {container} python -m infra maintain --json"))
    assert checkout.sh(f"docker exec {container} sqlite3 data/app.db 'SELECT name FROM items'").strip() == "Lamp"
    checkout.sh(f"docker stop {container}")
    assert checkout.inspect(container)["State"]["ExitCode"] == 0


def test_unhealthy_is_seen(run: Run, checkout: Checkout) -> None:
    container = run(f"-e PORT=8000 --health-interval 1s --health-retries 1 --health-start-period 1ms {SERVER} sleep 60")
    checkout.wait_for("unhealthy", container)


def test_function_starts_with_no_writable_path_but_tmp(run: Run, checkout: Checkout) -> None:
    port = free_port()
    container = run(
        f"{HARDENED} --user 1000:1000 -p 127.0.0.1:{port}:8080 -v {emulator_binary()}:/rie:ro --entrypoint /rie "
        f"-e AWS_LAMBDA_FUNCTION_NAME=items -e AWS_LAMBDA_FUNCTION_TIMEOUT=30 -e REPLICA_URL=file:///tmp/log "
        f"-e AUTH_MODE=none {LAMBDA} python -m awslambdaric handler.aws_lambda.handler"
    )
    function = Function(port)
    until(lambda: answers(function))
    assert function.request("POST", "/api/items", '{"name": "Lamp"}')["statusCode"] == 201
    directories = checkout.sh(f"docker exec {container} find / -xdev -writable -type d 2>/dev/null || true").split()
    assert [path for path in directories if not path.startswith("/proc")] == ["/tmp"]


def answers(function: Function) -> bool:
    try:
        return bool(function.request("GET", "/health")["statusCode"] == 200)
    except httpx2.HTTPError:
        return False
