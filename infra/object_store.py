"""A directory or an S3 bucket behind five verbs.

Credentials, region and endpoint come from the usual AWS variables, which obstore reads itself;
plain http is allowed only for an endpoint that somebody named (AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from core.errors import ObjectExists, ObjectMissing, StoreError, StoreRefused, StoreUnavailable

_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    name: str
    size: int  # bytes
    modified: datetime  # by the store's clock, UTC


class ObjectStore:
    """Objects under one URL, `s3://bucket/prefix` or `file:///directory`.

    Every method raises StoreRefused (no such bucket, access denied) or StoreUnavailable (anything that may
    pass by itself) with one line that names the URL and the cause.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._directory: Path | None = None
        with self._errors():
            if urlsplit(url).scheme == "file":
                self._directory = _made_directory(url)
                self._store: Any = LocalStore(self._directory)
            else:
                self._store = _s3_store(url)

    def check(self) -> None:
        """Prove that the store is there and may be listed and, for a directory, written."""
        with self._errors():
            next(iter(obstore.list(self._store, chunk_size=1)), None)
        if self._directory is not None and not os.access(self._directory, os.W_OK | os.X_OK):
            raise StoreRefused(f"{self.url}: the directory is not writable by user {os.getuid()}")

    def put(self, name: str, body: Path | bytes) -> None:
        """Write an object, replacing an older one of that name atomically."""
        self._put(name, body, "overwrite")

    def create(self, name: str, body: Path | bytes) -> None:
        """Write an object if the name is free. Raises ObjectExists."""
        self._put(name, body, "create")

    def read(self, name: str) -> Iterator[bytes]:
        """The object's bytes in chunks. Raises ObjectMissing."""
        with self._errors():
            yield from map(bytes, obstore.get(self._store, name).stream(min_chunk_size=_CHUNK))

    def list(self) -> list[ObjectInfo]:
        """Every object, in order of name; directories are not entered."""
        with self._errors():
            found = obstore.list_with_delimiter(self._store)["objects"]
            return sorted(
                (ObjectInfo(meta["path"], meta["size"], meta["last_modified"]) for meta in found),
                key=lambda info: info.name,
            )

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone already is no error."""
        try:
            with self._errors():
                obstore.delete(self._store, name)
        except ObjectMissing:
            pass

    def _put(self, name: str, body: Path | bytes, mode: Any) -> None:
        with self._errors():
            obstore.put(self._store, name, body, mode=mode)
            if self._directory is not None:
                _fsync(self._directory / name)
                _fsync(self._directory)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> StoreError:
        text = " ".join(str(error).split("\n\nDebug source")[0].split())
        message = f"{self.url}: {text}"
        if "<Code>NoSuchBucket</Code>" in text:
            return StoreRefused(f"{self.url}: there is no such bucket; create it or correct the URL")
        if isinstance(error, AlreadyExistsError):
            return ObjectExists(message)
        if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
            return StoreRefused(f"{self.url}: access denied ({text})")
        if isinstance(error, FileNotFoundError):
            return ObjectMissing(message)
        if "169.254.169.254" in text:
            message = f"{self.url}: no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
        return StoreUnavailable(message)


def _made_directory(url: str) -> Path:
    directory = Path(unquote(urlsplit(url).path))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreRefused(f"{url}: the directory cannot be created: {error.strerror}") from error
    return directory


def _s3_store(url: str) -> S3Store:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    return S3Store.from_url(
        url,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=3),
            "timeout": timedelta(seconds=60),
        },
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=30)},
    )


def _fsync(path: Path) -> None:
    """LocalStore links files into place without it, so a power cut could undo what was reported done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
