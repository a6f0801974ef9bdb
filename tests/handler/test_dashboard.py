"""The page for people. What it shows, and how, is seen by a real browser: tests/e2e/test_dashboard.py"""

import re

import httpx2
import pytest

from handler.callers.access import scope_needed
from handler.service import open_server_service
from tests.conftest import MakeSettings, assert_problem, serving
from tests.e2e.processes import ROOT

FILES = re.compile(r'(?:src|href)="([^"]+)"')


def test_page_comes_whole_from_our_own_origin(shared_client: httpx2.Client) -> None:
    page = shared_client.get("/dashboard")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    files = FILES.findall(page.text)
    imported = re.findall(r'from "\./([^"]+)"', shared_client.get("/dashboard/page.js").text)
    assert len(files) == 4
    assert len(imported) == 3
    for file in [*files, *(f"dashboard/{name}" for name in imported)]:
        answer = shared_client.get(f"/{file}")
        assert answer.status_code == 200, file
        assert answer.content
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "") or file == "dashboard/chart.js"
    assert "text/javascript" in shared_client.get("/dashboard/page.js").headers["content-type"]


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/page.js", "/dashboard/chart.js"])
def test_nothing_but_our_own_files_runs_or_loads_on_it(shared_client: httpx2.Client, path: str) -> None:
    (policy,) = shared_client.get(path).headers.get_list("content-security-policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules.values()) == {"'none'", "'self'"}
    assert {name for name, value in rules.items() if value == "'self'"} == {
        "script-src",
        "style-src",
        "img-src",
        "connect-src",
    }


def test_page_has_neither_script_nor_style_nor_handler_inside(shared_client: httpx2.Client) -> None:
    page = shared_client.get("/dashboard").text
    assert re.findall(r"<script[^>]*>(?!</script>)|<style|\sstyle=|\son\w+=|javascript:", page) == []


def test_files_are_asked_for_after_each_release(shared_client: httpx2.Client) -> None:
    script = shared_client.get("/dashboard/page.js")
    assert script.headers["cache-control"] == "private, no-cache"
    again = shared_client.get("/dashboard/page.js", headers={"If-None-Match": script.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert shared_client.get("/dashboard/chart.js").headers["cache-control"] == "public, max-age=86400"


@pytest.mark.parametrize("name", ["page.html", "__init__.py", "nothing", "..%2f__init__.py", "%2e%2e%2fasgi.py"])
def test_no_other_file_is_served(shared_client: httpx2.Client, name: str) -> None:
    assert_problem(shared_client.get(f"/dashboard/{name}"), 404)


def test_page_is_open_and_what_it_asks_is_not(make_settings: MakeSettings) -> None:
    with serving(open_server_service(make_settings(AUTH_MODE="keys", DOCS_OPEN="false"))) as client:
        for path in ("/dashboard", "/dashboard/page.js", "/dashboard/chart.js"):
            assert client.get(path).status_code == 200
        for path in ("/ops/status", "/ops/history?span=hour", "/dashboard/x/y"):
            assert_problem(client.get(path), 401)


def test_its_path_and_its_files_are_all_that_is_open() -> None:
    assert [scope_needed("GET", path, False) for path in ("/dashboard", "/dashboard/page.js")] == [None, None]
    assert None not in {scope_needed("GET", path, False) for path in ("/dashboards", "/dashboard/x/y", "/dashboard\n")}


def test_page_knows_where_the_runbook_is(make_settings: MakeSettings, shared_client: httpx2.Client) -> None:
    url = 'https://example.com/a?b="><i>&c/RUNBOOK.md'
    with serving(open_server_service(make_settings(RUNBOOK_URL=url))) as client:
        page = client.get("/dashboard").text
    assert 'data-runbook="https://example.com/a?b=&quot;&gt;&lt;i&gt;&amp;c/RUNBOOK.md"' in page
    assert 'data-runbook=""' in shared_client.get("/dashboard").text


def test_section_that_it_names_by_itself_is_there() -> None:
    named = re.findall(r"RUNBOOK\.md#alert-(\w+)", (ROOT / "handler/dashboard/page.js").read_text())
    alerts = re.findall(r"^### Alert: (\w+)$", (ROOT / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert named == ["servicedown"]
    assert "ServiceDown" in alerts


def test_it_is_packed_with_the_rest() -> None:
    (patterns,) = re.findall(r'package-data = \{ "\*" = \[(.*)\] \}', (ROOT / "pyproject.toml").read_text())
    kinds = {path.suffix for path in (ROOT / "handler/dashboard").iterdir() if path.is_file()} - {".py"}
    assert {f'"*{kind}"' for kind in kinds} <= set(patterns.split(", "))
