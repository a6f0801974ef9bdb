import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from peewee import Database, IntegrityError

from core import api_keys
from core.api_keys import Scope
from core.errors import KeyNotFound, KeyRefused

NOW, LATER, MUCH_LATER = "2026-01-31T12:00:00.000000Z", "2026-01-31T12:00:01.000000Z", "2027-01-01T00:00:00.000000Z"
READ = frozenset({Scope.READ})


def made(db: Database, scopes: frozenset[Scope] = READ, expires_at: str | None = None) -> tuple[str, str]:
    """Id and secret of a new key."""
    found = api_keys.parse(api_keys.create(db, "x", scopes, expires_at))
    assert found
    return found


def refusal(db: Database, key_id: str, secret: str, moment: str = NOW) -> str:
    with pytest.raises(KeyRefused) as error:
        api_keys.holder(db, key_id, secret, moment)
    assert secret not in str(error.value)
    return error.value.reason


def test_key_lets_its_holder_in_with_its_scopes(db: Database) -> None:
    key_id, secret = made(db, frozenset({Scope.OPS, Scope.READ}))
    held = api_keys.holder(db, key_id, secret, NOW)
    assert held.key_id == key_id
    assert held.scopes == {Scope.READ, Scope.OPS}


def test_secret_is_nowhere_in_the_database(on_sqlite: Database, tmp_path: Path) -> None:
    _, secret = made(on_sqlite)
    on_sqlite.execute_sql("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    assert secret.encode() not in (tmp_path / "copy.db").read_bytes()


def test_keys_can_be_found_where_they_were_left(db: Database) -> None:
    key = api_keys.create(db, "x", READ, None)
    page = (Path(__file__).parents[2] / "docs/api.md").read_text()
    assert api_keys.FORM.pattern.replace("(", "").replace(")", "") in page
    assert re.findall(rf"({api_keys.FORM.pattern})", f"token={key}&x")[0][0] == key


@pytest.mark.parametrize("spoil", [lambda key: key[:-1], lambda key: key + "0", str.upper, lambda key: " " + key])
def test_what_was_cut_short_or_mistyped_is_no_key(db: Database, spoil: Callable[[str], str]) -> None:
    assert api_keys.parse(spoil(api_keys.create(db, "x", READ, None))) is None


def test_each_character_counts(db: Database) -> None:
    key = api_keys.create(db, "x", READ, None)
    for place in range(4, len(key)):
        if key[place] != "_":
            other = "a" if key[place] != "a" else "b"
            assert api_keys.parse(key[:place] + other + key[place + 1 :]) is None


def test_two_keys_are_never_the_same(db: Database) -> None:
    keys = {api_keys.create(db, "x", READ, None) for _ in range(100)}
    assert len({key.split("_")[2][:30] for key in keys}) == 100


def test_reasons_why_a_key_lets_nobody_in(db: Database) -> None:
    key_id, secret = made(db, expires_at=LATER)
    assert api_keys.holder(db, key_id, secret, NOW)
    assert refusal(db, key_id, secret, LATER) == "expired"
    assert refusal(db, key_id, made(db)[1]) == "wrong_secret"
    assert refusal(db, "aaaaaaaa", secret) == "unknown"
    api_keys.revoke(db, key_id)
    assert refusal(db, key_id, secret) == "revoked"
    assert refusal(db, key_id, made(db)[1]) == "wrong_secret", "who has no key is not told of it"


def test_unknown_id_costs_a_comparison_too(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(given: bytes, kept: bytes) -> bool:
        compared.append(kept)
        return False

    monkeypatch.setattr("hmac.compare_digest", compare)
    for key_id in (made(db)[0], "aaaaaaaa"):
        refusal(db, key_id, "x" * 36)
    assert [len(kept) for kept in compared] == [32, 32]


def test_revoking_twice_keeps_the_first_time_and_nothing_to_revoke_is_said(db: Database) -> None:
    key_id, _ = made(db)
    api_keys.revoke(db, key_id)
    first = api_keys.list_keys(db)[0].revoked_at
    api_keys.revoke(db, key_id)
    assert first
    assert api_keys.list_keys(db)[0].revoked_at == first
    with pytest.raises(KeyNotFound, match="There is no key zzzzzzzz"):
        api_keys.revoke(db, "zzzzzzzz")


def test_use_is_noted_once_a_day_and_never_goes_back(db: Database) -> None:
    key_id, secret = made(db)
    assert not api_keys.holder(db, key_id, secret, NOW).used_today
    for day in ("2026-01-31", "2026-01-31", "2026-01-30"):
        api_keys.note_use(db, key_id, day)
        assert api_keys.list_keys(db)[0].last_used_on == "2026-01-31"
    assert api_keys.holder(db, key_id, secret, NOW).used_today
    assert not api_keys.holder(db, key_id, secret, MUCH_LATER).used_today


@pytest.mark.parametrize(
    "change",
    [
        "secret_sha256 = 'text'",
        "secret_sha256 = 7",
        "secret_sha256 = zeroblob(0)",
        "expires_at = 'tomorrow'",
        "expires_at = x'ff'",
        "expires_at = ''",
        "revoked_at = x'ff'",
        "revoked_at = 0",
        "scopes = x'ff00'",
        "scopes = 'readwrite'",
        "scopes = 'READ, write,'",
        "scopes = ''",
    ],
)
def test_whatever_a_shell_writes_lets_nobody_in_and_can_be_shown(on_sqlite: Database, change: str) -> None:
    key_id, secret = made(on_sqlite)
    on_sqlite.execute_sql(f"UPDATE api_keys SET {change}, name = CAST(x'ff1b0a' AS TEXT)")
    with suppress(KeyRefused):
        assert not api_keys.holder(on_sqlite, key_id, secret, NOW).scopes
    assert api_keys.list_keys(on_sqlite)[0].name == "\ufffd\ufffd\ufffd"


@pytest.mark.parametrize(
    "change",
    ["secret_sha256 = ''", "revoked_at = ''", "scopes = 'readwrite'", "scopes = 'READ, write,'", "scopes = ''"],
)
def test_whatever_postgresql_takes_lets_nobody_in_and_can_be_shown(on_postgresql: Database, change: str) -> None:
    key_id, secret = made(on_postgresql)
    on_postgresql.execute_sql(f"UPDATE api_keys SET {change}, name = U&'\\001b'")
    with suppress(KeyRefused):
        assert not api_keys.holder(on_postgresql, key_id, secret, NOW).scopes
    assert api_keys.list_keys(on_postgresql)[0].name == "\ufffd"


@pytest.mark.parametrize(
    "time", ["tomorrow", "", "2027-01-01", "2027-01-01T00:00:00Z", LATER + " ", "\uff12" + LATER[1:]]
)
def test_postgresql_takes_no_expiry_that_would_not_compare_as_text(on_postgresql: Database, time: str) -> None:
    made(on_postgresql)
    with pytest.raises(IntegrityError, match="api_keys_expires_at_check"):
        on_postgresql.execute_sql("UPDATE api_keys SET expires_at = %s", (time,))
