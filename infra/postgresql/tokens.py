"""Passwords that are tokens of IAM: a request to the database's service, signed (SigV4) and valid for some minutes.

Credentials come from the environment, as Lambda sets them, or from where ECS, EKS and EC2 have them.
"""

import hashlib
import hmac
import json
import os
import re
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core.errors import DatabaseUnavailable, SettingsError

_REGION = re.compile(r"\.(?:dsql\.)?([a-z]{2}(?:-[a-z]+)+-[0-9])\.(?:rds\.amazonaws\.com|on\.aws)")
_VALID_SECONDS = 900  # until it is used; the connection lasts longer
_FOREVER = datetime.max.replace(tzinfo=UTC)
_EARLY = timedelta(minutes=5)
_SECONDS = 2.0
_CONTAINER = "http://169.254.170.2"
_INSTANCE = "http://169.254.169.254/latest"
_ROLES = "/meta-data/iam/security-credentials/"


@dataclass(frozen=True, slots=True)
class Credentials:
    key_id: str
    secret: str
    session: str
    until: datetime


def token_of(kind: str, parameters: dict[str, Any]) -> Callable[[], str]:
    """What makes the token for a connection with these parameters. Raises SettingsError when they say too little.

    `kind`: rds or dsql.
    """
    host, user, port = parameters.get("host", ""), parameters.get("user", ""), parameters.get("port", "5432")
    region = found[1] if (found := _REGION.search(host)) else os.environ.get("AWS_REGION", "")
    if not (host and user and region) or "," in host:
        raise SettingsError(
            "DATABASE_TOKEN needs one host and a user in DATABASE_URL, and AWS_REGION where the host does not name it"
        )
    if kind == "rds":
        place, service, asked = f"{host}:{port}", "rds-db", {"Action": "connect", "DBUser": user}
    else:
        place, service = host, "dsql"
        asked = {"Action": "DbConnectAdmin" if user == "admin" else "DbConnect"}
    known = _Known()
    return lambda: signed(place, service, region, asked, known.credentials(), datetime.now(UTC))


def signed(
    place: str, service: str, region: str, asked: dict[str, str], credentials: Credentials, now: datetime
) -> str:
    """The address of a GET with its signature, without a scheme."""
    day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{day}/{region}/{service}/aws4_request"
    query = {
        **asked,
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{credentials.key_id}/{scope}",
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(_VALID_SECONDS),
        "X-Amz-SignedHeaders": "host",
        **({"X-Amz-Security-Token": credentials.session} if credentials.session else {}),
    }
    text = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
    request = f"GET\n/\n{text}\nhost:{place}\n\nhost\n{hashlib.sha256(b'').hexdigest()}"
    to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return f"{place}/?{text}&X-Amz-Signature={hmac.digest(key, to_sign.encode(), 'sha256').hex()}"


class _Known:
    """Credentials, asked for again before they end. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Credentials | None = None

    def credentials(self) -> Credentials:
        """Raises DatabaseUnavailable when nobody has any."""
        if key_id := os.environ.get("AWS_ACCESS_KEY_ID"):
            secret, session = os.environ.get("AWS_SECRET_ACCESS_KEY", ""), os.environ.get("AWS_SESSION_TOKEN", "")
            return Credentials(key_id, secret, session, _FOREVER)
        with self._lock:
            if self._found is None or self._found.until - datetime.now(UTC) < _EARLY:
                try:
                    self._found = _asked_for()
                except (OSError, ValueError, KeyError) as error:
                    raise DatabaseUnavailable(
                        "DATABASE_TOKEN: no AWS credentials in the environment (AWS_ACCESS_KEY_ID), of a container or "
                        f"of an instance: {error}"
                    ) from error
            return self._found


def _asked_for() -> Credentials:
    if path := os.environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        return _read(_fetched(_CONTAINER + path))
    if url := os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        token = os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
        if name := os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            token = Path(name).read_text().strip()
        return _read(_fetched(url, {"Authorization": token} if token else {}))
    session = _fetched(f"{_INSTANCE}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    headers = {"X-aws-ec2-metadata-token": session.decode()}
    role = _fetched(_INSTANCE + _ROLES, headers).decode().strip()
    return _read(_fetched(_INSTANCE + _ROLES + role, headers))


def _fetched(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    request = urllib.request.Request(url, headers=headers or {}, method=method)  # noqa: S310  # of the environment
    with opener.open(request, timeout=_SECONDS) as answer:
        body: bytes = answer.read(64 * 1024)
        return body


def _read(body: bytes) -> Credentials:
    found = json.loads(body)
    until = datetime.fromisoformat(found["Expiration"])
    return Credentials(found["AccessKeyId"], found["SecretAccessKey"], found["Token"], until)
