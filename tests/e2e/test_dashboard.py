"""The dashboard as somebody has it before them: in a real Chromium, over a real server."""

import json
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from handler.service import open_server_service
from tests.conftest import serving, settings_in
from tests.e2e.browser import browsing
from tests.e2e.conftest import Server
from tests.e2e.dashboard_answers import history_answer, status_answer
from tests.e2e.processes import free_port
from tests.e2e.test_keys import keys

pytestmark = pytest.mark.e2e

TRIED = "This document requires 'TrustedHTML' assignment. The action has been blocked."
RUNBOOK = "https://example.com/RUNBOOK.md"
REFRESH = 6000  # a bit more than the page waits
OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens pages, of which none may do what their policy forbids, or fail."""
    complaints: list[str] = []
    contexts = []

    def open_page(**options: Any) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("console", lambda line: complaints.append(line.text) if is_complaint(line.text) else None)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def is_complaint(line: str) -> bool:
    # what is refused, or not there, is the service's answer, and the page's to show
    return not line.startswith("Failed to load resource") and line != TRIED


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = settings_in(tmp_path_factory.mktemp("dashboard"), RUNBOOK_URL=RUNBOOK)
    with serving(open_server_service(settings)) as client:
        yield str(client.base_url).rstrip("/")


def answer_with(page: Page, status: dict[str, Any], history: Callable[[str], dict[str, Any]] = history_answer) -> None:
    page.route("**/ops/status", lambda route: route.fulfill(json=status))
    page.route("**/ops/history?*", lambda route: route.fulfill(json=history(route.request.url.split("=")[1])))


def shown(page: Page, address: str) -> Page:
    page.goto(f"{address}/dashboard")
    expect(page.locator("#content")).to_be_visible()
    return page


def sees(page: Page) -> dict[str, Any]:
    """What stands on the page, exactly: numbers and times as their elements have them, the rest as text."""
    found: dict[str, Any] = page.evaluate(
        """() => {
          const exact = (cell) => {
            const inner = cell.querySelector("data, time");
            if (!inner) return cell.textContent === "–" ? null : cell.textContent;
            return inner.localName === "data" ? Number(inner.value) : inner.dateTime;
          };
          const all = (parts, see) => [...parts].map(see);
          const named = (id) => document.getElementById(id);
          const table = (id) => all(named(id).tBodies[0].rows, (row) => all(row.cells, exact));
          const list = (id) => Object.fromEntries(all(named(id).children, ({ children: [name, value] }) =>
            [name.textContent, exact(value)]));
          const tables = ["alerts", "objectives", "errors", "commits", "backups", "gauges", "points"];
          return {
            ...Object.fromEntries(tables.map((id) => [id, table(id)])),
            ...Object.fromEntries(["container", "log"].map((id) => [id, list(id)])),
            newest: [...document.querySelectorAll(".key > span")].map(exact),
            plotted: [...document.querySelectorAll("canvas")].flatMap((canvas) =>
              Chart.getChart(canvas).data.datasets.map(({ data }) => data.map(({ y }) => y))),
            since: document.querySelector("#sentence time").dateTime,
            reason: document.getElementById("reason").textContent,
            service: document.getElementById("service").textContent,
          };
        }"""
    )
    return found


def ending(alert: dict[str, Any]) -> str:
    if not (last := alert["last"]):
        return ""
    at, until = (datetime.fromisoformat(last[name]).astimezone() for name in ("at", "until"))
    return f"The last {last['what']} was at {at:%H:%M}; this goes away by {until:%H:%M} if no other comes."


def times(error: dict[str, Any]) -> str:
    return f", {error['count']:,} times, this is the newest" if error["count"] > 1 else ""


SERIES = (
    "requests_per_second",
    "p50_seconds",
    "p95_seconds",
    "p99_seconds",
    "errors_per_second",
    "memory_bytes",
    "commits",
    "conflicts",
    "database_bytes",
    "wal_bytes",
)


def assert_shows(page: Page, status: dict[str, Any], history: dict[str, Any]) -> None:
    seen = sees(page)
    service, log, gauges, points = status["service"], status["log"], status["gauges"], history["points"]
    # what the sentence says is not said again
    said = [status["reason"].removesuffix("Everything is well."), *[ending(alert) for alert in status["alerts"][:1]]]
    assert (seen["since"], seen["reason"]) == (status["since"], " ".join(filter(None, said)))
    assert {service["name"], service["version"]} <= set(seen["service"].split(" · "))
    assert seen["alerts"] == [
        [each["severity"] + each["name"], each["summary"] + ending(each), each["since"], each["runbook"]]
        for each in status["alerts"]
    ]
    for row, each in zip(seen["objectives"], status["objectives"], strict=True):
        assert row[0].startswith(each["title"])
        assert row[1:] == [
            each["target"],
            *(each["values"][span] for span in ("5m", "1h", "24h", "30d")),
            each["budget_left"],
            each["state"].replace("_", " "),
        ]
    assert seen["errors"] == [
        [each["at"], f"{each['message']}{each['level']}, {each['logger']}{times(each)}", each["request_id"]]
        for each in status["errors"]
    ]
    assert seen["commits"] == [
        [each["txid"], each["at"], each["writes"], each["bytes"]] for each in log["commits"][:10]
    ]
    assert seen["backups"] == [
        [each["name"], each["at"], each["proven_at"] or (None if place else "not yet"), each["bytes"]]
        for place, each in enumerate(status["backups"])
    ]
    assert seen["gauges"] == [[name, value] for name, value in sorted(gauges.items())]
    assert seen["container"]["Started"] == service["started_at"]
    assert seen["container"].get("Volume, free") == gauges.get("data_volume_free_bytes")
    facts = (log["txid"], log["url"], log["lag"], log["since_compaction"], log["since_snapshot"])
    assert tuple(seen["log"].values())[:5] == facts
    assert seen["log"]["Database"] == gauges["database_size_bytes"]
    assert seen["points"] == [[point["at"], *(point[name] for name in SERIES)] for point in reversed(points)]
    assert seen["plotted"] == [[point[name] for point in points] for name in SERIES]
    assert seen["newest"] == [points[-1][name] if points else None for name in SERIES]


def test_everything_that_the_answers_have_is_shown(open_page: OpenPage, address: str) -> None:
    page = open_page()
    answer_with(page, status_answer())
    shown(page, address).get_by_text("The plots as a table").click()
    expect(page.locator("#points tbody tr")).to_have_count(60)
    assert_shows(page, status_answer(), history_answer())
    expect(page.locator("h1")).to_contain_text("The service is degraded, since ")
    expect(page.locator("#first a")).to_have_attribute("href", f"{RUNBOOK}#alert-storeaway")
    expect(page.locator("#alerts a").last).to_have_attribute("href", f"{RUNBOOK}#alert-drillold")
    expect(page.locator("#objectives tbody tr").nth(2)).to_contain_text("of this instance alone")
    page.get_by_role("radio", name="day").check()
    expect(page.locator("#points tbody tr")).to_have_count(144)
    assert_shows(page, status_answer(), history_answer("day"))


def test_nothing_is_said_of_a_log_where_postgresql_has_its_own(open_page: OpenPage, address: str) -> None:
    page = open_page()
    answer_with(page, status_answer())
    assert shown(page, address).get_by_role("heading", name="Commit log").is_visible()
    answer_with(page, {**status_answer(), "log": None, "backups": []})
    page.reload()
    page.get_by_role("heading", name="Alerts").wait_for()
    for name in ("Commit log", "Backups"):
        assert not page.get_by_role("heading", name=name).is_visible()


def test_a_real_service_is_shown_as_it_is(open_page: OpenPage, start_server: Callable[..., Server]) -> None:
    server = start_server()
    for name in ("Lamp", "<img src=x onerror=alert(1)>"):
        assert server.client.post("/api/items", json={"name": name}).status_code == 201
    server.client.get("/api/<script>alert(1)</script>")
    page, answers = open_page(), dict[str, Any]()

    def keep_the_first(route: Route) -> None:  # so that it is still the same while it is compared
        url = route.request.url
        if url not in answers:
            answers[url] = route.fetch().json()
        route.fulfill(json=answers[url])

    page.route("**/ops/**", keep_the_first)
    address = str(server.client.base_url).rstrip("/")
    shown(page, address).get_by_text("The plots as a table").click()
    history = answers[f"{address}/ops/history?span=hour"]
    expect(page.locator("#points tbody tr")).to_have_count(len(history["points"]))
    assert_shows(page, answers[f"{address}/ops/status"], history)
    assert len(answers[f"{address}/ops/status"]["log"]["commits"]) >= 2


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("ratio(0.99953)", "99.953 %"),
        ("ratio(0.9999999)", "99.999 %"),
        ("ratio(1)", "100 %"),
        ("ratio(-0.31)", "−31 %"),
        ("seconds(0)", "0 s"),
        ("seconds(0.00042)", "0.42 ms"),
        ("seconds(0.0123)", "12 ms"),
        ("seconds(0.5)", "500 ms"),
        ("seconds(4.25)", "4.3 s"),
        ("seconds(190)", "3 min"),
        ("seconds(7200)", "2 h"),
        ("seconds(300000)", "3 days"),
        ("bytes(0)", "0 B"),
        ("bytes(999)", "999 B"),
        ("bytes(1731584)", "1.73 MB"),
        ("bytes(48.3e9)", "48.3 GB"),
        ("count(1203)", "1,203"),
        ("perSecond(12.25)", "12.3/s"),
        ("ago(new Date(Date.now() - 190e3).toISOString())", "3 min ago"),
        ("ago(new Date(Date.now() + 190e3).toISOString())", "now"),
        ('gauge("x_seconds", 0.25)', "250 ms"),
        ('gauge("x_bytes", 1000)', "1 kB"),
        ("seconds(null)", "–"),
    ],
)
def test_numbers_have_the_units_of_people(units: Page, call: str, text: str) -> None:
    assert (
        units.evaluate(f"async () => {{ const units = await import('/dashboard/units.js'); return units.{call}; }}")
        == text
    )


@pytest.fixture(scope="module")
def units(browser: Browser, address: str) -> Page:
    page = browser.new_page()
    answer_with(page, status_answer())
    page.goto(f"{address}/dashboard")
    return page


def test_a_refresh_changes_values_and_nothing_else(open_page: OpenPage, address: str) -> None:
    page = open_page(viewport={"width": 820, "height": 600})
    page.clock.install()
    status = status_answer()
    del status["gauges"]["backup_newest_timestamp_seconds"]  # it grows older, too
    answer_with(page, status)
    shown(page, address).locator("#alerts a").last.focus()
    page.evaluate("scrollTo(0, 300)")
    page.evaluate(
        """() => {
          window.changes = [];
          const real = (one) => one.type === "childList" || one.oldValue !== one.target.getAttribute(one.attributeName);
          new MutationObserver((list) => changes.push(...list.filter(real).map(({ target }) => target.localName)))
            .observe(document.querySelector("main"), { subtree: true, childList: true, attributeOldValue: true });
        }"""
    )
    nothing = "() => changes.filter((name) => name !== 'time')"  # whose "3 min ago" grows older
    with page.expect_response("**/ops/history?*"):
        page.clock.run_for(REFRESH)
    page.clock.run_for(100)
    assert page.evaluate(nothing) == []
    status["alerts"][1]["summary"] = "No restore drill in 46 days"
    status["log"]["commits"].insert(0, status["log"]["commits"][0] | {"txid": "00000000000034f2"})
    with page.expect_response("**/ops/history?*"):
        page.clock.run_for(REFRESH)
    expect(page.get_by_text("No restore drill in 46 days")).to_be_visible()
    expect(page.locator("#commits tbody tr").first).to_contain_text("00000000000034f2")
    expect(page.locator("#alerts a").last).to_be_focused()
    assert page.evaluate("scrollY") == 300


def test_an_answer_that_was_overtaken_says_nothing(open_page: OpenPage, address: str) -> None:
    page, late = open_page(), list[Route]()
    answer_with(page, status_answer())
    shown(page, address).get_by_text("The plots as a table").click()
    expect(page.locator("#points tbody tr")).to_have_count(60)
    page.route("**/ops/history?span=hour", lambda route: late.append(route))
    with page.expect_request("**/ops/history?span=hour"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_role("radio", name="day").check()
    expect(page.locator("#points tbody tr")).to_have_count(144)
    with page.expect_response("**/ops/history?span=hour"):
        late[0].fulfill(json=history_answer())
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("#points tbody tr")).to_have_count(144)


def test_nothing_is_asked_for_a_page_that_nobody_sees(open_page: OpenPage, address: str) -> None:
    page, asked = open_page(), list[str]()
    page.clock.install()
    answer_with(page, status_answer())
    shown(page, address)
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.clock.run_for(10 * REFRESH)
    assert asked == []
    page.evaluate("delete document.hidden")
    with page.expect_response("**/ops/status"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'&amp;javascript:alert(3)"


def test_what_comes_from_outside_stays_text(open_page: OpenPage, address: str) -> None:
    page = open_page()
    status = status_answer(HOSTILE)
    status["alerts"][0]["runbook"] = "javascript:alert(4)#x"
    answer_with(page, status)
    shown(page, address)
    assert page.locator("main img, main script, header img").count() == 0
    assert {href.split("#")[0] for href in page.locator("a").evaluate_all("all => all.map((a) => a.href)")} == {RUNBOOK}
    for place in (
        "#reason",
        "#alerts",
        "#objectives",
        "#errors",
        "#backups",
        "#log",
        "#service",
        "#gauges",
        "#not-asked",
    ):
        assert HOSTILE in (page.locator(place).text_content() or ""), place
    # and if the page itself had a hole, its policy would be left
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")


def test_key_is_asked_for_kept_in_the_tab_and_forgotten(
    open_page: OpenPage, start_server: Callable[..., Server], tmp_path: Any
) -> None:
    database = {"DATABASE_PATH": str(tmp_path / "data" / "app.db")}
    server = start_server(AUTH_MODE="keys", READ_FRESHNESS_SECONDS="0")
    reader = keys(database, "create", "reader", "--scope", "read")
    operator = keys(database, "create", "operator", "--scope", "ops")
    page, address = open_page(), str(server.client.base_url).rstrip("/")
    page.goto(f"{address}/dashboard")
    field = page.get_by_label("Key with the scope ops")
    expect(field).to_be_focused()
    expect(page.locator("h1")).to_have_text("A key is needed")
    for wrong, why in (("nonsense", "key"), (reader, "ops")):
        field.fill(wrong)
        field.press("Enter")
        expect(page.locator("h1")).to_have_text("This key does not do")
        expect(page.locator("#reason")).to_contain_text(why)
    field.fill(operator)
    field.press("Enter")
    expect(page.locator("#content")).to_be_visible()
    expect(field).to_be_hidden()
    page.reload()
    expect(page.locator("#content")).to_be_visible()
    assert page.evaluate("Object.values(sessionStorage)") == [operator]
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert operator not in page.url + page.content()
    page.get_by_role("button", name="Forget the key").click()
    expect(field).to_be_visible()
    expect(page.locator("#content")).to_be_hidden()
    assert page.evaluate("sessionStorage.length") == 0
    assert operator not in "\n".join(server.process.lines)


def test_it_says_that_the_service_is_gone_and_comes_back_by_itself(
    open_page: OpenPage, start_server: Callable[..., Server]
) -> None:
    port = str(free_port())
    server = start_server(PORT=port)
    page = shown(open_page(), f"http://127.0.0.1:{port}")
    expect(page.locator("#state")).not_to_have_attribute("data-state", "asking")
    server.process.end(signal.SIGKILL)
    expect(page.locator("h1")).to_contain_text("The service does not answer, since ", timeout=20_000)
    expect(page.locator("#first")).to_contain_text("RUNBOOK.md#alert-servicedown")
    expect(page.locator("#commits")).to_be_attached()  # what was known is still there
    expect(page).to_have_title("gone · Dashboard")
    start_server(PORT=port)
    expect(page.locator("h1")).not_to_contain_text("does not answer", timeout=20_000)
    expect(page.locator("#state")).not_to_have_attribute("data-state", "gone")


def test_it_says_what_an_error_says(open_page: OpenPage, address: str) -> None:
    page = open_page()
    problem = {"status": 503, "detail": "The store is away"}
    page.route("**/ops/*", lambda route: route.fulfill(status=503, body=json.dumps(problem)))
    page.goto(f"{address}/dashboard")
    expect(page.locator("#reason")).to_have_text("Its answer is 503: The store is away")
    expect(page.locator("#content")).to_be_hidden()


def test_it_works_below_a_prefix(open_page: OpenPage, address: str) -> None:
    page = open_page()

    def without_prefix(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/prod/", "/")))

    page.route(f"{address}/**", lambda route: route.abort())
    page.route(f"{address}/prod/**", without_prefix)
    shown(page, f"{address}/prod")
    expect(page.locator("canvas").first).to_be_visible()


def test_keys_of_the_keyboard_suffice(open_page: OpenPage, address: str) -> None:
    page = open_page()
    answer_with(page, status_answer())
    shown(page, address)
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.value || document.activeElement.localName"
            )
        )
        if reached[-1] == "hour":
            with page.expect_request("**/ops/history?span=day"):
                page.keyboard.press("ArrowRight")
        if reached[-1] == "summary":
            page.keyboard.press("Enter")
            expect(page.locator("#points")).to_be_visible()
            break
    assert reached == ["a", "a", "a", "hour", "summary"]


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (820, "light"), (1440, "dark")])
def test_anybody_can_read_it_at_any_size(open_page: OpenPage, address: str, width: int, scheme: Any) -> None:
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    answer_with(page, status_answer(), lambda span: history_answer(span, points=5))  # axe looks at each cell
    shown(page, address)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert_accessible(page)
    page.unroute_all()
    page.route("**/ops/*", lambda route: route.abort())
    page.get_by_role("radio", name="day").check()  # asks at once
    expect(page.locator("#state")).to_have_attribute("data-state", "gone")
    assert_accessible(page)
    page.unroute_all()
    page.route("**/ops/*", lambda route: route.fulfill(status=401, json={"detail": "A key is needed."}))
    page.get_by_role("radio", name="hour").check()
    expect(page.locator("#entry")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert_accessible(page)


def assert_accessible(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
