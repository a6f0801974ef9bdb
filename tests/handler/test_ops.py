import asyncio
import json
import re

import apsw
import httpx2
import peewee
import pytest

from handler.asgi import create_app
from handler.service import Service, open_server_service
from infra.maintenance.routine import MaintenanceRoutine
from tests.conftest import MakeSettings, assert_problem, open_at, serving
from tests.log_watch import kept_lines


def test_health_and_ready_answer_exactly(client: httpx2.Client) -> None:
    assert client.get("/health").json() == {"status": "healthy"}
    assert client.get("/ready").json() == {"status": "ready", "database": "connected"}


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_ready_tells_why_not_and_health_does_not_care(
    client: httpx2.Client, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.settings.database_path.rename(service.settings.database_path.with_name("moved.db"))
    response = client.get("/ready")
    assert response.status_code == 503
    assert response.json()["status"] == "not ready"
    assert "was removed or replaced" in response.json()["database"]
    assert client.get("/health").status_code == 200
    assert_problem(client.post("/api/items", json={"name": "x"}), 503)
    assert "was removed or replaced" in caplog.text


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_locked_database_is_503_with_retry_after_and_counted(
    client: httpx2.Client, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    other = apsw.Connection(str(service.settings.database_path))
    other.execute("BEGIN IMMEDIATE")
    response = client.post("/api/items", json={"name": "x"})
    assert_problem(response, 503)
    assert response.headers["retry-after"] == "1"
    assert "is locked by another connection" in caplog.text
    assert client.get("/api/items").status_code == 200
    other.execute("ROLLBACK")
    other.close()
    assert client.post("/api/items", json={"name": "x"}).status_code == 201
    assert "database_locked_total 1.0" in client.get("/metrics").text


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_full_disk_is_507(client: httpx2.Client, service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def limit(db: peewee.Database) -> None:
        db.execute_sql("PRAGMA max_page_count = 1").fetchall()

    asyncio.run(service.database.write(limit))
    responses = [client.post("/api/items", json={"name": "x", "description": "y" * 2000}) for _ in range(10)]
    assert_problem(responses[-1], 507)
    assert "No space left for" in caplog.text


def test_what_nobody_expected_is_a_500_that_tells_nothing(
    client: httpx2.Client, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("secret inner workings")

    monkeypatch.setattr(type(service.database), "read", fail)
    problem = assert_problem(client.get("/api/items"), 500)
    assert problem["detail"] == "Internal Server Error"
    assert "secret inner workings" in caplog.text
    monkeypatch.undo()
    assert client.get("/api/items").status_code == 200


def test_each_request_is_one_log_line(client: httpx2.Client) -> None:
    with kept_lines("handler.request") as lines:
        client.get("/api/items/7?q=not-logged", headers={"x-request-id": "abc"})
        for _ in range(2):  # on the same connection, so the lines of those before are written by now
            client.get("/health")
    first, second, *_ = lines
    assert (first["method"], first["path"], first["status_code"]) == ("GET", "/api/items/7", 404)
    assert first["duration_ms"] > 0
    assert first["code"] == "not_found"
    assert "code" not in second
    assert "not-logged" not in str(first)


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_metrics_name_routes_not_paths(client: httpx2.Client) -> None:
    for path in ("/api/items/1", "/api/items/2", "/nowhere", "/elsewhere"):
        client.get(path)
    client.request("PROPFIND", "/api/items")
    text = client.get("/metrics").text
    assert 'http_requests_total{method="GET",route="/api/items/{item_id}",status="404"} 2.0' in text
    assert 'http_requests_total{method="GET",route="none",status="404"} 2.0' in text
    assert 'method="other"' in text
    assert re.search(r"^database_size_bytes [1-9]", text, re.MULTILINE)


def test_docs_come_whole_from_our_own_origin(client: httpx2.Client) -> None:
    page = client.get("/docs")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "://" not in page.text.replace("http://www.w3.org", "")
    for source in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        response = client.get(f"/{source}")
        assert response.status_code == 200
        assert response.content
    assert_problem(client.get("/docs/swagger-ui.js"), 404)


def test_openapi_promises_no_defaults_for_what_a_patch_leaves_out(client: httpx2.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert [name for name, field in schemas["ItemPatch"]["properties"].items() if "default" in field] == []
    assert schemas["NewItem"]["properties"]["quantity"]["default"] == 0


def test_openapi_names_every_route_of_the_api(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": "."}]  # seen from the document, so that "Try it out" works behind any prefix
    assert set(document["paths"]["/api/items"]) == {"get", "post"}
    assert set(document["paths"]["/api/items/{item_id}"]) == {"get", "put", "patch", "delete"}
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_server_starts_while_the_store_for_backups_is_away(
    make_settings: MakeSettings, s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    service = open_server_service(make_settings(BACKUP_URL=s3, MAINTENANCE_INTERVAL_SECONDS=3600))
    with serving(service) as client:
        assert client.post("/api/items", json={"name": "x"}).status_code == 201
    assert "backups cannot be made now" in caplog.text


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_database_is_closed_although_maintenance_cannot_be_stopped(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: MaintenanceRoutine) -> None:
        raise RuntimeError("a bug")

    async def live() -> None:
        app = create_app(service)
        async with app.router.lifespan_context(app):
            pass

    monkeypatch.setattr(MaintenanceRoutine, "stop", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(live())
    open_at(service.settings.database_path).close()
