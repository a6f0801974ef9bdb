from pathlib import Path

import pytest

from core.errors import SettingsError
from infra.settings import Settings


def test_defaults_need_no_environment() -> None:
    settings = Settings.from_environment({})
    assert settings.database_path == Path.cwd() / "data" / "app.db"
    assert settings.backup_url == (Path.cwd() / "data" / "backups").as_uri()
    assert (settings.port, settings.host, settings.maintenance_interval_seconds) == (8000, "127.0.0.1", 3600)
    assert (settings.keep_commits_hours, settings.keep_runs_days, settings.keep_daily_days) == (24, 7, 30)


def test_backups_lie_beside_the_database_unless_told_otherwise() -> None:
    assert Settings.from_environment({"DATABASE_PATH": "/x/y z.db"}).backup_url == "file:///x/backups"
    assert Settings.from_environment({"BACKUP_URL": "s3://b/p"}).backup_url == "s3://b/p"


def test_empty_variables_count_as_unset() -> None:
    assert Settings.from_environment({"PORT": "", "BACKUP_URL": ""}) == Settings.from_environment({})


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "abc"), ("PORT", "70000"), ("MAINTENANCE_INTERVAL_SECONDS", "-1"), ("LOG_LEVEL", "LOUD")]
    + [("BUSY_TIMEOUT_SECONDS", "nan"), ("MAX_BODY_BYTES", "0"), ("BACKUP_KEEP_DAILY_DAYS", "1.5")]
    + [("BACKUP_KEEP_DAILY_DAYS", "36501"), ("BACKUP_KEEP_HOURLY_DAYS", "99999999999")]
    + [("RATE_LIMIT", "-1"), ("RATE_LIMIT", "nan"), ("RATE_BURST", "0"), ("MAX_CONNECTIONS", "0")]
    + [("REQUEST_TIMEOUT_SECONDS", "0"), ("KEEP_ALIVE_SECONDS", "0"), ("HSTS_SECONDS", "-1")]
    + [("FORWARDED_ALLOW_IPS", value) for value in ("*", "proxy", "10.0.0.1/8", "10.0.0.1,")]
    + [
        ("CORS_ORIGINS", value)
        for value in ("*", "null", "example.com", "https://x/", "https://a b", "https://*.x.org", "https://X.org", ",")
    ]
    + [("KEEP_COMMITS_HOURS", "23"), ("KEEP_RUNS_DAYS", "0"), ("KEEP_DAILY_DAYS", "36501")]
    + [
        (name, url)
        for name in ("BACKUP_URL", "REPLICA_URL")
        for url in ("gopher://x", "s3://", "/plain/path", "s3:bucket", "http://[", "s3://bucket name/x", "s3://b/%00")
    ],
)
def test_wrong_value_is_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: value})
    assert str(caught.value).startswith(f"{name}={value!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_PATH", "~/app.db"),
        ("DATABASE_PATH", "~root/app.db"),
        ("REPLICA_URL", "file:///~/log"),
        ("BACKUP_URL", "file:///~root/backups"),
        ("BACKUP_URL", "file:///%7E/b"),
    ],
)
def test_home_directory_is_not_guessed(name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="only a shell knows what ~ is: write the whole path") as caught:
        Settings.from_environment({name: value})
    assert str(caught.value).startswith(f"{name}={value!r}: ")
    assert list(tmp_path.iterdir()) == []


def test_name_with_a_tilde_is_a_name() -> None:
    assert Settings.from_environment({"DATABASE_PATH": "./~app.db"}).database_path == Path.cwd() / "~app.db"
    assert Settings.from_environment({"BACKUP_URL": "file:///x/~y"}).backup_url == "file:///x/~y"
    assert Settings.from_environment({"BACKUP_URL": "s3://bucket/~y"}).backup_url == "s3://bucket/~y"


def test_secret_in_a_wrong_url_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"BACKUP_URL": "s3://KEY:SECRET@bucket/x"})
    assert str(caught.value).startswith("BACKUP_URL='s3://***': ")
    assert "SECRET" not in str(caught.value)


def test_a_link_is_another_name_of_the_same_database(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "real" / "app.db")
    settings = Settings.from_environment({"DATABASE_PATH": str(tmp_path / "link.db")})
    assert settings.database_path == tmp_path / "real" / "app.db"
    assert settings.backup_url == (tmp_path / "real" / "backups").as_uri()


def test_lambda_without_a_place_that_outlives_it_is_refused() -> None:
    with pytest.raises(SettingsError, match="REPLICA_URL must be set on Lambda"):
        Settings.from_environment({"AWS_LAMBDA_FUNCTION_NAME": "f"})


@pytest.mark.parametrize("name", ["REPLICA_URL", "BACKUP_URL"])
def test_lambda_has_the_places_that_are_named_and_no_others(name: str) -> None:
    settings = Settings.from_environment({"AWS_LAMBDA_FUNCTION_NAME": "f", name: "s3://bucket/x"})
    assert {settings.replica_url, settings.backup_url} == {"s3://bucket/x", ""}


def test_log_level_is_read_in_any_case() -> None:
    assert Settings.from_environment({"LOG_LEVEL": "debug"}).log_level == "DEBUG"


def test_lists_have_commas() -> None:
    settings = Settings.from_environment(
        {"CORS_ORIGINS": "https://a.org, http://[::1]:3000", "FORWARDED_ALLOW_IPS": "10.0.0.0/8,::1"}
    )
    assert settings.cors_origins == ("https://a.org", "http://[::1]:3000")
    assert settings.forwarded_allow_ips == ("10.0.0.0/8", "::1")


@pytest.mark.parametrize("url", ["RUNBOOK.md", "javascript:alert(1)//x", "https://", "https://["])
def test_runbook_is_a_page(url: str) -> None:
    with pytest.raises(SettingsError, match="RUNBOOK_URL="):
        Settings.from_environment({"RUNBOOK_URL": url})


def test_modes_and_lists_of_arns() -> None:
    settings = Settings.from_environment({"AUTH_MODE": "iam", "IAM_OPS_ARNS": " arn:a , arn:b*,", "DOCS_OPEN": "false"})
    assert (settings.auth_mode, settings.iam_ops_arns, settings.docs_open) == ("iam", ("arn:a", "arn:b*"), False)
    with pytest.raises(SettingsError, match=r"AUTH_MODE='open': input should be 'keys', 'iam', 'jwt' or 'none'"):
        Settings.from_environment({"AUTH_MODE": "open"})
