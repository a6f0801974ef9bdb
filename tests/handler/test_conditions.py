"""No lost update: entity tags, If-Match and If-None-Match (RFC 9110, 8.8.3 and 13), over real sockets."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import apsw
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from handler.conditions import Tags, coded
from handler.problems import Refusal
from handler.service import Service, open_server_service
from infra.settings import Settings
from tests.conftest import MakeSettings, assert_problem, serving

LAMP = {"name": "Lamp"}
LONG = {"name": "Lamp", "description": "long " * 400}
PLAIN = {"accept-encoding": "identity"}


def create(client: httpx2.Client, **fields: object) -> tuple[str, str]:
    """Returns where it is, and its tag."""
    made = client.post("/api/items", json={**LAMP, **fields})
    assert made.status_code == 201
    return made.headers["location"], made.headers["etag"]


def change(client: httpx2.Client, method: str, url: str, field: str, value: str | list[str]) -> httpx2.Response:
    values = [value] if isinstance(value, str) else value
    headers = [(field.encode(), each.encode("latin-1")) for each in values]
    content = None if method == "DELETE" else b'{"name": "Torch"}'
    return client.request(method, url, headers=[(b"content-type", b"application/json"), *headers], content=content)


def test_every_answer_that_shows_an_item_has_its_tag_with_the_version_in_it(client: httpx2.Client) -> None:
    url, created = create(client)
    assert re.fullmatch(r'"1-[0-9a-f]{16}"', created)
    assert client.get(url).headers["etag"] == client.head(url).headers["etag"] == created
    for method in ("PUT", "PATCH"):
        answer = client.request(method, url, json=LAMP)
        assert answer.headers["etag"].startswith(f'"{answer.json()["version"]}-')
        assert answer.headers["etag"] == client.get(url).headers["etag"] != created
    assert "etag" not in client.delete(url).headers


def test_patch_that_changes_nothing_keeps_the_tag(client: httpx2.Client) -> None:
    url, tag = create(client)
    answer = client.patch(url, json={}, headers={"if-match": tag})
    assert (answer.status_code, answer.json()["version"], answer.headers["etag"]) == (200, 1, tag)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_second_of_two_who_have_read_the_same_is_refused(client: httpx2.Client, method: str) -> None:
    url, tag = create(client)
    assert change(client, "PATCH", url, "if-match", tag).status_code == 200
    refused = change(client, method, url, "if-match", tag)
    problem = assert_problem(refused, 412)
    assert problem["code"] == "precondition_failed"
    newest = client.get(url)
    assert newest.headers["etag"] in problem["detail"]
    assert newest.json()["version"] == 2
    assert refused.headers.get("x-commit-txid") == newest.headers.get("x-commit-txid")
    assert change(client, method, url, "if-match", newest.headers["etag"]).status_code in (200, 204)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("*", 200),
        ("TAG", 200),
        ('"a" ,\t TAG ,', 200),
        (", ,TAG", 200),
        ('"a,b", TAG, W/"c"', 200),
        (['"a"', "TAG"], 200),
        ("GZIP", 200),
        ("W/TAG", 412),
        ('"other"', 412),
        ('"a,TEXT,b"', 412),
        ('""', 412),
        ('"\xff\x80"', 412),
        ('"a", W/TAG', 412),
        ("TEXT", 400),
        ("w/TAG", 400),
        ("W/ TAG", 400),
        ("*, TAG", 400),
        (["*", "*"], 400),
        ("TAG TAG", 400),
        ("TAG;q=1", 400),
        ('"a', 400),
        ('"a b"', 400),
        ("'a'", 400),
        ("", 400),
        (",", 400),
        ("**", 400),
    ],
)
def test_if_match_is_read_as_the_rfc_says(shared_client: httpx2.Client, value: str | list[str], status: int) -> None:
    url, tag = create(shared_client)

    def filled(text: str) -> str:
        return text.replace("TAG", tag).replace("TEXT", tag[1:-1]).replace("GZIP", coded(tag))

    for method in ("GET", "HEAD", "PATCH"):
        given_now = filled(value) if isinstance(value, str) else [filled(each) for each in value]
        answer = change(shared_client, method, url, "if-match", given_now)
        assert answer.status_code == status, (method, answer.text)
        if status == 400 and method != "HEAD":
            problem = assert_problem(answer, 400)
            assert (problem["code"], "If-Match should be" in problem["detail"]) == ("malformed_header", True)
    assert shared_client.get(url).json()["version"] == (2 if status == 200 else 1)


@pytest.mark.parametrize(
    ("value", "status"), [("*", 304), ("TAG", 304), ("W/TAG", 304), ('"a,", W/TAG', 304), ('"a"', 200), ("TEXT", 400)]
)
@pytest.mark.parametrize("path", ["/api/items/1", "/api/items"])
def test_if_none_match_spares_what_the_caller_has(client: httpx2.Client, path: str, value: str, status: int) -> None:
    create(client)
    tag = client.get(path).headers["etag"]
    headers = {"if-none-match": value.replace("TAG", tag).replace("TEXT", tag[1:-1]), "x-request-id": "mine"}
    for method in ("GET", "HEAD"):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == status
        if status == 304:
            assert answer.content == b""
            assert (answer.headers["etag"], answer.headers["x-request-id"]) == (tag, "mine")
            assert answer.headers.get("x-commit-txid") == client.get(path).headers.get("x-commit-txid")
            assert not {"content-type", "content-length", "content-encoding"} & set(answer.headers)


def test_list_has_another_tag_as_soon_as_it_shows_anything_else(client: httpx2.Client) -> None:
    def tag(query: str = "?limit=2") -> str:
        return str(client.get(f"/api/items{query}").headers["etag"])

    tags = [tag()]
    url, _ = create(client)
    tags.append(tag())
    client.patch(url, json={"quantity": 1})
    tags.append(tag())
    create(client)
    tags.append(tag())
    create(client)  # beyond the page, which now has a next one
    tags.append(tag())
    assert len(set(tags)) == len(tags)
    create(client)
    assert tag() == tags[-1] != tag("?limit=3")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_if_none_match_holds_for_changes_too(client: httpx2.Client, method: str) -> None:
    url, tag = create(client)
    for value in ("*", tag, f"W/{tag}", coded(tag)):
        problem = assert_problem(change(client, method, url, "if-none-match", value), 412)
        assert "If-None-Match" in problem["detail"]
    assert change(client, method, url, "if-none-match", '"other"').status_code in (200, 204)


@pytest.mark.parametrize("field", ["if-match", "if-none-match"])
@pytest.mark.parametrize("value", ["*", '"a"'])
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_item_that_is_not_there_is_404_whatever_the_conditions(
    shared_client: httpx2.Client, method: str, field: str, value: str
) -> None:
    problem = assert_problem(change(shared_client, method, "/api/items/999", field, value), 404)
    is_create = (method, field, value) == ("PUT", "if-none-match", "*")
    if is_create:
        assert "POST gives it one" in problem["detail"]
    assert problem["detail"].startswith("There is no item 999.")


def test_if_match_comes_before_if_none_match(client: httpx2.Client) -> None:
    url, tag = create(client)
    both = {"if-match": '"other"', "if-none-match": tag}
    assert "If-Match" in assert_problem(client.get(url, headers=both), 412)["detail"]
    assert "If-Match" in assert_problem(client.put(url, json=LAMP, headers=both), 412)["detail"]
    assert client.get(url, headers={"if-match": tag, "if-none-match": tag}).status_code == 304


def test_change_that_comes_again_with_its_key_is_answered_as_before_though_its_tag_is_old(
    client: httpx2.Client,
) -> None:
    url, tag = create(client)
    headers = {"if-match": tag, "idempotency-key": '"one"'}
    first, again = (client.patch(url, json={"quantity": 1}, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code, again.headers["etag"]) == (200, 200, first.headers["etag"])
    refused = {"if-match": tag, "idempotency-key": '"two"'}
    assert_problem(client.patch(url, json={"quantity": 2}, headers=refused), 412)
    assert client.get(url).json()["version"] == 2


def test_what_is_wrong_with_the_body_comes_first(client: httpx2.Client) -> None:
    url, _ = create(client)
    assert_problem(client.put(url, json={"name": ""}, headers={"if-match": '"other"'}), 422)


def test_compressed_answer_has_a_tag_of_its_own_and_either_may_be_sent_back(client: httpx2.Client) -> None:
    url, _ = create(client, **LONG)
    packed, plain = client.get(url, headers={"accept-encoding": "gzip"}), client.get(url, headers=PLAIN)
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["etag"] == coded(plain.headers["etag"]) != plain.headers["etag"]
    for answer, accepted in ((packed, "gzip"), (plain, "identity")):
        known = {"if-none-match": answer.headers["etag"], "accept-encoding": accepted}
        again = client.get(url, headers=known)
        assert (again.status_code, again.headers["etag"]) == (304, answer.headers["etag"])
        assert again.headers["vary"] == "Accept-Encoding"
    # a cache may not take the one for the other
    assert client.get(url, headers={**PLAIN, "if-none-match": packed.headers["etag"]}).status_code == 200
    changed = client.patch(url, json={"quantity": 1}, headers={"if-match": packed.headers["etag"]})
    assert changed.status_code == 200
    assert client.delete(url, headers={"if-match": changed.headers["etag"]}).status_code == 204


@pytest.mark.sqlite_only("restore")
def test_tag_of_before_a_restore_does_not_match_the_same_version_after_it(service: Service) -> None:
    """Otherwise a caller would overwrite what it has not seen."""
    with serving(service) as client:
        url, _ = create(client)
        before = client.patch(url, json={"quantity": 1}).headers["etag"]
        with closing(apsw.Connection(str(service.settings.database_path))) as shell:
            shell.execute("UPDATE items SET quantity = 0, version = 1")  # as a restore puts it back
        after = client.patch(url, json={"quantity": 7})
        assert (after.json()["version"], before[:3]) == (2, '"2-')
        assert_problem(client.put(url, json=LAMP, headers={"if-match": before}), 412)
        assert client.get(url).json()["quantity"] == 7


@pytest.mark.sqlite_only("a shell that writes into the file")
@pytest.mark.parametrize(
    "assignment",
    ["name = 'x'", "description = ''", "price_cents = 1", "quantity = 1", "created_at = '2026'", "updated_at = '2026'"],
)
def test_tag_changes_with_all_that_a_shell_may_change_without_counting_it(service: Service, assignment: str) -> None:
    with serving(service) as client:
        url, tag = create(client)
        with closing(apsw.Connection(str(service.settings.database_path))) as shell:
            shell.set_busy_timeout(5000)
            shell.execute(f"UPDATE items SET {assignment}")
        assert client.get(url, headers={"if-none-match": tag}).status_code == 200
        assert_problem(client.delete(url, headers={"if-match": tag}), 412)


def test_of_many_who_change_the_same_state_at_once_one_succeeds(client: httpx2.Client) -> None:
    url, tag = create(client)

    async def at_once() -> list[int]:
        async with httpx2.AsyncClient(base_url=client.base_url, timeout=20, trust_env=False) as other:
            patches = (other.patch(url, json={"quantity": n}, headers={"if-match": tag}) for n in range(40))
            return [answer.status_code for answer in await asyncio.gather(*patches)]

    assert sorted(asyncio.run(at_once())) == [200] + [412] * 39
    assert client.get(url).json()["version"] == 2


def test_two_instances_do_not_lose_an_update_either(make_settings: MakeSettings, tmp_path: Path) -> None:
    def instance(name: str) -> Service:
        return open_server_service(
            make_settings(DATABASE_PATH=tmp_path / name / "app.db", REPLICA_URL=(tmp_path / "log").as_uri())
        )

    with serving(instance("one")) as one, serving(instance("two")) as two:
        url, tag = create(one)
        seen = {name: value for name, value in one.get(url).headers.items() if name == "x-commit-txid"}
        assert two.get(url, headers=seen).headers["etag"] == tag
        assert one.patch(url, json={"quantity": 1}, headers={"if-match": tag}).status_code == 200
        # the second does not know of it yet: its transaction is run again on the state that it then finds
        assert_problem(two.patch(url, json={"quantity": 2}, headers={"if-match": tag}), 412)
        assert one.get(url).json()["quantity"] == 1


@pytest.fixture
def demanding(make_settings: MakeSettings) -> Iterator[httpx2.Client]:
    with serving(open_server_service(make_settings(REQUIRE_IF_MATCH="true"))) as client:
        yield client


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_setting_demands_if_match(demanding: httpx2.Client, method: str) -> None:
    url, tag = create(demanding)
    for field, value in (("x-none", "x"), ("if-none-match", '"other"')):
        problem = assert_problem(change(demanding, method, url, field, value), 428)
        assert (problem["code"], "Send If-Match" in problem["detail"]) == ("if_match_required", True)
    assert demanding.get(url).json()["version"] == 1
    assert change(demanding, method, url, "if-match", tag).status_code in (200, 204)


def test_nothing_is_demanded_without_the_setting(settings: Settings) -> None:
    assert settings.require_if_match is False


ETAGC = st.characters(codec="latin-1", exclude_characters='"\x7f', exclude_categories=[], min_codepoint=0x21)
TAGS = st.tuples(st.sampled_from(["", "W/"]), st.text(ETAGC.filter(lambda c: c == "!" or c >= "#"))).map(
    lambda made: f'{made[0]}"{made[1]}"'
)
OWS = st.text(" \t", max_size=2)


@given(tags=st.lists(TAGS, min_size=1), spaces=st.lists(OWS, min_size=1), empty=st.booleans())
def test_list_that_follows_the_grammar_is_read_as_it_is(tags: list[str], spaces: list[str], empty: bool) -> None:
    comma = "," + ",".join(spaces) if empty else f"{spaces[0]},{spaces[-1]}"
    found = Tags.read(Headers({"if-match": comma.join(tags)}), "If-Match", weakly=False)
    assert found == Tags("If-Match", False, frozenset(tags))


@given(text=st.text(st.sampled_from('",*W/ a\t\xff')) | st.text(st.characters(codec="latin-1")))
def test_whatever_is_sent_is_read_or_refused(text: str) -> None:
    with suppress(Refusal):
        found = Tags.read(Headers(raw=[(b"if-match", text.encode("latin-1"))]), "If-Match", weakly=True)
        assert found
        assert found.any is (text.strip(" \t") == "*")
        assert found.any or found.tags
