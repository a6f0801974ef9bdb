"""A store whose certificate is of an authority of somebody's own, over real TLS."""

import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from core.errors import SettingsError, StoreUnavailable
from infra.storage.object_store import ObjectStore
from tests.e2e.proxy import proxy_before
from tests.infra.storage.certificates import Authority

MakeServer = Callable[[Authority], ssl.SSLContext]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_authority_in_the_bundle_is_trusted(
    s3: str, moto_endpoint: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.file))
    with proxy_before(moto_endpoint, tls=authority.server()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        store = ObjectStore(s3)
        store.check()
        store.create("a", b"x")
        assert store.read_range("a", 0, 10) == b"x"


@pytest.mark.parametrize(
    ("server", "cause"),
    [
        pytest.param(
            lambda known: known.server(x509.DNSName("minio.internal")), "is for another host name", id="wrong name"
        ),
        pytest.param(lambda known: known.server(begins=-4), "has expired", id="expired"),
        pytest.param(lambda known: known.server(begins=1), "is not valid yet", id="too early"),
        pytest.param(lambda known: known.server_with_its_own(), "is that of an authority", id="self-signed"),
    ],
)
def test_certificate_that_does_not_hold_is_told_by_its_cause(
    s3: str, moto_endpoint: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, server: MakeServer, cause: str
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.file))
    with proxy_before(moto_endpoint, tls=server(authority)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        with pytest.raises(StoreUnavailable, match=rf"error sending request: its certificate {cause}.*: "):
            ObjectStore(s3).check()
        assert proxy.requests == []


def test_command_names_the_variable_that_an_unknown_authority_needs(
    s3: str, moto_endpoint: str, authority: Authority, tmp_path: Path
) -> None:
    def log(endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment |= {"AWS_ENDPOINT_URL_S3": endpoint, "REPLICA_URL": f"{s3}/log", "DATABASE_PATH": "absent.db"}
        command = [sys.executable, "-m", "infra", "log"]
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)

    with proxy_before(moto_endpoint, tls=authority.server()) as proxy:
        refused = log(proxy.endpoint)
        assert refused.returncode == 1
        assert "its certificate is of an authority that is not known here" in refused.stderr
        assert "AWS_CA_BUNDLE" in refused.stderr
        assert "Debug" not in refused.stderr
        assert log(proxy.endpoint, AWS_CA_BUNDLE=str(authority.file)).returncode == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no certificate"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no certificate"),
    ],
)
def test_bundle_that_holds_no_certificate_is_a_wrong_setting(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    file = tmp_path / "bundle.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    with pytest.raises(SettingsError, match=f"^AWS_CA_BUNDLE='{file}' {message}"):
        ObjectStore(s3)
