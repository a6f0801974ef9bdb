"""The life of the service in a container, with the project's own Makefile and Compose file."""

import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.e2e.checkout import CONTAINER, Checkout
from tests.e2e.evidence import Claims, items_in, run_together, write_items
from tests.e2e.pages import blocks
from tests.e2e.processes import SHELL, own_address, until

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
LIMIT = 512 * MIB
NEXT_MIGRATION = "ALTER TABLE items ADD COLUMN colour TEXT;\n"
# For `sqlite3`: rows that fill about 60 MB
MANY_ROWS = """
.timeout 20000
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
INSERT INTO items (name, description, price_cents, quantity, created_at, updated_at, version)
SELECT 'row ' || i, hex(randomblob(100)), i, 0, '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z', 1 FROM n;
"""


@pytest.fixture
def service(checkout: Checkout) -> Checkout:
    """Running, without any data."""
    checkout.begin_anew()
    return checkout


def check(claims: Claims, service: Checkout, directory: Path) -> None:
    """Held against the database of a stopped service."""
    assert len(claims.acknowledged) > 20
    copy = shutil.copy(service.data / "app.db", directory / "copy.db")
    claims.check(Path(copy))


def writers(service: Checkout, claims: Claims, number: int = 4) -> list[partial[None]]:
    return [partial(write_items, service.client.base_url, f"writer {n}", claims) for n in range(number)]


# Seen in the runbook that the service was asked to satisfy, so in somebody's fingers
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("docker ps | grep cloud-native-poc", "(healthy)"),
        ("docker inspect cloud-native-poc | jq '.[0].State.Health'", '"Status": "healthy"'),
        ("docker inspect cloud-native-poc | jq -e '.[0].State.Running'", "true"),
        ("docker logs cloud-native-poc | jq 'select(.level==\"INFO\")'", '"service": "cloud-native-poc"'),
        ("docker logs cloud-native-poc 2>&1 | jq -r 'select(.path == \"/api/items\")'", '"status_code": 200'),
        ('docker exec cloud-native-poc sqlite3 /app/data/app.db "SELECT 1;"', "1"),
        ("docker exec cloud-native-poc ps aux", "python -m handler"),
        ("docker exec cloud-native-poc python -c \"from infra.database import Database; print('DB OK')\"", "DB OK"),
        ("docker exec cloud-native-poc pip list", "starlette"),
        ("docker stats cloud-native-poc --no-stream --format '{{.MemUsage}}'", "512MiB"),
        ("timeout 3 make logs || test $? = 124", '"level":"INFO"'),
    ],
)
def test_familiar_commands_work(running: Checkout, command: str, expected: str) -> None:
    assert expected in running.sh(command)


@pytest.fixture(scope="module")
def running(checkout: Checkout) -> Checkout:
    checkout.begin_anew()
    checkout.names()
    return checkout


def test_it_runs_with_few_rights_and_bounds(running: Checkout) -> None:
    container = running.inspect()
    host = container["HostConfig"]
    assert container["Config"]["User"] == "1000:1000"
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["Memory"]) == (True, ["ALL"], LIMIT)
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert container["Config"]["StopTimeout"] > 10
    assert host["LogConfig"]["Config"] == {"max-file": "5", "max-size": "10m"}


def test_there_are_no_errors_in_the_log_of_a_quiet_life(running: Checkout) -> None:
    running.sh("docker restart cloud-native-poc; docker compose up -d --wait")
    assert running.sh('docker logs cloud-native-poc | jq \'select(.level=="ERROR" or .level=="WARNING")\'') == ""


def test_stop_under_load_loses_nothing(service: Checkout, tmp_path: Path) -> None:
    claims = Claims()

    def stop() -> None:
        claims.wait_for(100)
        service.sh("docker stop -t 30 cloud-native-poc")

    run_together([*writers(service, claims), stop])
    assert service.inspect()["State"]["ExitCode"] == 0
    check(claims, service, tmp_path)
    service.sh("docker start cloud-native-poc; docker compose up -d --wait")
    assert set(service.names()) <= claims.acknowledged.keys() | claims.unknown


def test_restart_and_replacement_lose_nothing(service: Checkout) -> None:
    kept = service.add("kept")
    for command in (
        "docker restart cloud-native-poc",
        "docker compose restart app",
        "docker kill cloud-native-poc && docker start cloud-native-poc",
        "make stop && make run",
        "docker compose down && docker compose up -d",
    ):
        service.sh(f"{command} && docker compose up -d --wait")
        assert service.client.get(f"/api/items/{kept}").json()["name"] == "kept", command


@pytest.mark.parametrize("compose", ["docker compose", "docker-compose"])
def test_service_is_replaced_by_a_new_image_in_one_step(service: Checkout, compose: str) -> None:
    if not shutil.which(compose.split()[0]):
        compose = "docker compose"  # the old spelling is not everywhere any more
    service.add("kept")
    before = service.inspect()["Id"]
    service.sh(f"{compose} up -d --no-deps --build --wait app", VERSION="v2.0.0")
    now = service.inspect()
    assert now["Id"] != before
    assert now["Config"]["Labels"]["org.opencontainers.image.version"] == "v2.0.0"
    assert service.names() == ["kept"]


def test_upgrade_and_rollback_on_the_same_data(service: Checkout) -> None:
    """The newer release has one more migration."""
    migration = service.directory / "core" / "migrations" / "0004_colour.sqlite.sql"
    assert len(list(migration.parent.glob("*.sqlite.sql"))) == 3, "number the next one here anew"

    def released(name: str) -> None:
        service.sh(f"make build && docker tag cloud-native-poc:latest cloud-native-poc:{name}", VERSION=name)

    def deployed(name: str) -> str:
        service.sh(f"docker tag cloud-native-poc:{name} cloud-native-poc:latest")
        service.sh("docker compose up -d --no-build --wait")
        assert service.inspect()["Config"]["Labels"]["org.opencontainers.image.version"] == name
        return service.sh(f"docker exec {CONTAINER} sqlite3 data/app.db 'PRAGMA user_version'").strip()

    try:
        released("e2e-old")
        migration.write_text(NEXT_MIGRATION)
        released("e2e-new")
        assert deployed("e2e-old") == "3"
        service.add("by the old release")
        assert deployed("e2e-new") == "4"
        service.add("by the new release")
        assert deployed("e2e-old") == "4"
        service.add("after the rollback")
        assert service.names() == ["by the old release", "by the new release", "after the rollback"]
        assert "is sound" in service.sh(f"docker exec {CONTAINER} python -m infra verify")
    finally:
        migration.unlink(missing_ok=True)
        service.run("make stop; docker rmi cloud-native-poc:e2e-old cloud-native-poc:e2e-new; make build")


def test_operators_use_the_shell_on_the_host_while_it_serves(service: Checkout, tmp_path: Path) -> None:
    claims = Claims()

    def operate() -> None:
        for work in ("VACUUM", "ANALYZE", "REINDEX", ".backup data/by-hand.db", "PRAGMA wal_checkpoint(TRUNCATE)"):
            claims.wait_for(len(claims) + 30)
            service.as_root(f"{SHELL} -cmd '.timeout 20000' data/app.db '{work}'")
        claims.wait_for(len(claims) + 30)
        service.sh("docker stop cloud-native-poc")

    run_together([*writers(service, claims, 2), operate])
    check(claims, service, tmp_path)
    by_hand = items_in(Path(shutil.copy(service.data / "by-hand.db", tmp_path)))
    assert 60 < len(by_hand) < len(claims)


def test_everything_on_the_bind_mount_belongs_to_user_1000(service: Checkout) -> None:
    service.add("kept")
    service.sh(f"docker exec {CONTAINER} python -m infra maintain")
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in [service.data, *service.data.rglob("*")]}
    assert owners == {(1000, 1000)}


@pytest.mark.parametrize("start", ["docker compose up -d --wait", "make run"])
def test_what_belongs_to_root_is_given_to_the_service(service: Checkout, start: str) -> None:
    """A fresh clone's directories, which Docker makes, and files that somebody has copied."""
    service.add("kept")
    service.sh("make stop")
    service.as_root("chown -R 0:0 data && rm -rf backups")
    service.sh(start)
    assert service.names() == ["kept"]
    assert "made" in service.sh(f"docker exec {CONTAINER} python -m infra backup")
    places = [service.data, service.directory / "backups"]
    assert {path.stat().st_uid for place in places for path in [place, *place.rglob("*")]} == {1000}
    service.as_root("printf '*\\n!.gitignore\\n' > backups/.gitignore")  # as it is in a checkout


def test_build_moves_no_tag_that_the_compose_file_names(service: Checkout) -> None:
    service.sh("docker tag cloud-native-poc:latest cloud-native-poc:e2e-kept")
    kept, file = service.inspect()["Image"], service.directory / "docker-compose.yml"
    before = file.read_text()
    try:
        file.write_text(before.replace("cloud-native-poc:latest", "cloud-native-poc:e2e-kept"))
        service.sh("make run", VERSION="v9.0.0")
        assert service.inspect()["Image"] == kept
        built = service.inspect("cloud-native-poc:latest")
        assert built["Config"]["Labels"]["org.opencontainers.image.version"] == "v9.0.0"
    finally:
        file.write_text(before)
        service.sh("make stop; docker rmi cloud-native-poc:e2e-kept")


def test_others_get_in_only_with_a_mode_that_somebody_has_said(service: Checkout) -> None:
    outside = f"http://{own_address()}:{service.port}/api/items"
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(outside, trust_env=False)
    failed = service.run("docker compose up -d --wait", PUBLISH="0.0.0.0")
    assert failed.returncode == 1, failed.stderr
    assert "AUTH_MODE='must be said to publish on 0.0.0.0'" in service.log()[-1]["message"]
    service.sh("docker compose up -d --wait", PUBLISH="0.0.0.0", AUTH_MODE="keys")
    assert httpx2.get(outside, trust_env=False).status_code == 401
    key = service.sh(f"docker exec {CONTAINER} python -m infra keys create x --scope read 2> /dev/null").strip()
    until(lambda: httpx2.get(outside, headers={"X-API-Key": key}, trust_env=False).status_code == 200)
    service.start()
    assert service.names() == []


def test_restart_loop_is_seen_by_the_alert_queries(service: Checkout) -> None:
    script = next(block.script for block in blocks("RUNBOOK.md") if block.name == "Alerts without Prometheus")
    query = script.partition("\ndocker inspect -f")[0]
    assert "ALERT" not in service.sh(query)
    service.run("docker compose up -d", PUBLISH="0.0.0.0")  # and nobody has said who may come in
    until(lambda: service.inspect()["RestartCount"] >= 3)
    assert "ALERT: container not running" in service.run(query).stdout
    assert "CRITICAL" in service.sh("docker logs cloud-native-poc 2>&1 | jq -r .level").split()


def test_port_in_use_is_said_and_harms_nothing(service: Checkout) -> None:
    service.add("kept")
    service.sh("make stop")
    with closing(socket.create_server(("0.0.0.0", service.port))):
        failed = service.run("make run")
    assert failed.returncode == 2
    assert re.search("already (in use|allocated)", failed.stderr)
    assert service.inspect()["State"]["ExitCode"] == 128
    service.start()
    assert service.names() == ["kept"]


def test_damaged_database_is_kept_and_built_anew_at_the_start(service: Checkout) -> None:
    for number in range(20):
        service.add(f"item {number}")
    service.sh("docker stop cloud-native-poc")
    service.as_root("dd if=/dev/urandom of=data/app.db bs=4096 count=2 conv=notrunc status=none")
    service.sh("docker start cloud-native-poc && docker compose up -d --wait")
    assert service.names() == [f"item {number}" for number in range(20)]
    assert len(list(service.data.glob("app.db.diverged-*"))) == 1
    assert [line["level"] for line in service.log() if "diverged" in line["message"]] == ["ERROR"]


@pytest.fixture
def small_disk(checkout: Checkout) -> Iterator[str]:
    """A container whose /app/data has 16 MB; its name."""
    options = "type=tmpfs --opt device=tmpfs --opt o=size=16m,uid=1000,gid=1000"
    checkout.sh(f"make stop; docker volume create --driver local --opt {options} small-e2e")
    try:
        checkout.sh(
            f"docker run -d --name small-e2e -p 127.0.0.1:{checkout.port}:8000 --health-interval 1s "
            "-v small-e2e:/app/data -e MAINTENANCE_INTERVAL_SECONDS=0 -e AUTH_MODE=none cloud-native-poc:latest"
        )
        checkout.wait_for("healthy", "small-e2e")
        yield "small-e2e"
    finally:
        checkout.sh("docker rm -f small-e2e && docker volume rm small-e2e")


def test_full_disk_is_a_507_until_there_is_room(small_disk: str, checkout: Checkout) -> None:
    stored = [checkout.add("before")]
    checkout.run(f"docker exec {small_disk} dd if=/dev/zero of=data/filler bs=4096")
    for _ in range(100):
        answer = checkout.client.post("/api/items", json={"name": "x" * 50, "description": "y" * 500})
        if answer.status_code != 201:
            break
        stored.append(answer.json()["id"])
    assert answer.status_code == 507
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(checkout.names()) == len(stored)
    checkout.sh(f"docker exec {small_disk} rm data/filler")
    stored.append(checkout.add("after"))
    assert [item["id"] for item in checkout.client.get("/api/items?limit=100").json()["items"]] == stored
    assert "is sound" in checkout.sh(f"docker exec {small_disk} python -m infra verify")


def test_memory_limit_is_kept_under_load(service: Checkout, tmp_path: Path) -> None:
    """Writes, searches and maintenance at once, on a database of some 60 MB."""
    service.sh(f"docker exec -i {CONTAINER} sqlite3 data/app.db <<'EOF'\n{MANY_ROWS}EOF\n")
    assert sum(path.stat().st_size for path in service.data.glob("app.db*")) > 50 * MIB
    claims, peak = Claims(), [0]

    def search() -> None:
        with httpx2.Client(base_url=service.client.base_url, timeout=60, trust_env=False) as client:
            for number in range(25):
                assert client.get("/api/items", params={"q": f"row {number}", "limit": 100}).status_code == 200
                peak[0] = max(peak[0], memory(service))

    def maintain() -> None:
        claims.wait_for(50)
        service.sh(f"docker exec {CONTAINER} python -m infra maintain")
        service.sh(f"docker exec {CONTAINER} python -m infra verify")

    def all_of_it() -> None:
        run_together([search, search, maintain])
        service.sh("docker stop -t 30 cloud-native-poc")

    run_together([*writers(service, claims, 6), all_of_it])
    state = service.inspect()
    assert state["HostConfig"]["Memory"] == LIMIT
    assert (state["State"]["OOMKilled"], state["State"]["ExitCode"], state["RestartCount"]) == (False, 0, 0)
    assert 0 < peak[0] < LIMIT
    with closing(sqlite3.connect(shutil.copy(service.data / "app.db", tmp_path))) as connection:
        stored = dict(connection.execute("SELECT name, id FROM items WHERE id > 200000"))
    assert claims.acknowledged.items() <= stored.items()


def memory(service: Checkout) -> int:
    """Bytes that the container's processes hold, without the files that the kernel has cached for them."""
    groups = "/sys/fs/cgroup/memory/memory.stat /sys/fs/cgroup/memory.stat"  # cgroup v1, v2
    text = service.sh(f"docker exec {CONTAINER} sh -c 'cat {groups} 2>/dev/null || true'")
    numbers = dict(line.split() for line in text.splitlines())
    return int(numbers.get("total_rss") or numbers["anon"])


def test_app_stands_alone_by_default_and_the_s3_profile_adds_a_store(service: Checkout) -> None:
    assert service.sh("docker compose ps --services").split() == ["app"]
    service.add("in the embedded log")
    service.sh("COMPOSE_PROFILES=s3 make build && docker compose --profile s3 up -d --wait")
    assert sorted(service.sh("docker compose ps --services").split()) == ["app", "app-s3", "s3"]
    with httpx2.Client(base_url=service.app_s3, trust_env=False, timeout=30) as client:
        assert client.post("/api/items", json={"name": "in S3"}).status_code == 201
        # Neither its disk nor the restart of the store takes anything away
        service.sh("docker compose --profile s3 rm -sf app-s3 && docker compose restart s3")
        service.sh("docker compose --profile s3 up -d --wait")
        assert [item["name"] for item in client.get("/api/items").json()["items"]] == ["in S3"]
        assert client.get("/ready").json() == {"status": "ready", "database": "connected"}
    assert service.names() == ["in the embedded log"]
    service.sh("COMPOSE_PROFILES=s3 make run && make stop")
    assert service.sh("docker compose --profile s3 ps --all --quiet") == ""


def test_postgres_profile_adds_a_service_that_keeps_everything_there(service: Checkout) -> None:
    service.sh("COMPOSE_PROFILES=postgres make build && docker compose --profile postgres up -d --wait")
    assert sorted(service.sh("docker compose ps --services").split()) == ["app", "app-postgres", "postgres"]
    with httpx2.Client(base_url=service.app_postgres, trust_env=False, timeout=30) as client:
        assert client.post("/api/items", json={"name": "in PostgreSQL"}).status_code == 201
        service.sh("docker compose --profile postgres rm -sf app-postgres && docker compose restart postgres")
        service.sh("docker compose --profile postgres up -d --wait")
        assert [item["name"] for item in client.get("/api/items").json()["items"]] == ["in PostgreSQL"]
        assert client.get("/ready").json() == {"status": "ready", "database": "connected"}
    service.sh("make stop")
    assert service.sh("docker compose --profile postgres ps --all --quiet") == ""
