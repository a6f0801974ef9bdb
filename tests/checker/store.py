"""The log as its owner sees it: past the service and past any proxy."""

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

_AT_ONCE = 500  # keys in one request to delete


class LogPlace(ABC):
    """Where the servers of a round keep their log."""

    url: str

    @abstractmethod
    def environment(self, endpoint: str = "") -> dict[str, str]:
        """For a process that uses it, through a proxy if its endpoint is given."""

    @abstractmethod
    def head(self) -> int:
        """The newest TXID."""

    @abstractmethod
    def commits(self) -> dict[int, bytes]:
        """The level-0 objects by TXID."""

    @abstractmethod
    def written_again(self) -> list[str]:
        """The level-0 objects that were written more than once."""

    @abstractmethod
    def empty(self) -> None:
        """Take everything away that is under the prefix."""

    @abstractmethod
    def is_empty(self) -> bool: ...

    @abstractmethod
    def put_back(self) -> None:
        """The newest commit first, so that no commit is ever there without those that followed it."""

    @abstractmethod
    def close(self) -> None: ...

    def restore(self, target: Path) -> str:
        """By the stock Litestream; what it complains about, or nothing."""
        binary = Path(sys.executable).with_name("litestream")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            [str(binary), "restore", "-integrity-check", "full", "-o", str(target), self.url_for_litestream()],
            env=environment | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def url_for_litestream(self) -> str:
        return self.url


class Bucket(LogPlace):
    """A versioned bucket: what is taken away gets a delete marker, and comes back as it was when that goes."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint = endpoint
        self.name = name
        self.url = f"s3://{name}/log"
        self._s3: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )
        self._removed: set[tuple[str, str]] = set()  # key, version: written while the rest was away
        self._s3.create_bucket(Bucket=name)
        self._s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    def environment(self, endpoint: str = "") -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "REPLICA_URL": self.url,
            "BACKUP_URL": f"s3://{self.name}/backups",
        }

    def head(self) -> int:
        return max((_txid(version["Key"]) for version in self._versions("log/0000/", "Versions")), default=0)

    def commits(self) -> dict[int, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=60)
        found = {}
        for version in self._versions("log/0000/", "Versions"):
            if version["IsLatest"]:
                connection.request("GET", f"/{self.name}/{version['Key']}")
                body = connection.getresponse().read()
                assert hashlib.md5(body).hexdigest() in version["ETag"], f"{version['Key']} changed while it was read"
                found[_txid(version["Key"])] = body
        connection.close()
        return found

    def written_again(self) -> list[str]:
        counts = Counter(
            version["Key"]
            for version in self._versions("log/0000/", "Versions")
            if (version["Key"], version["VersionId"]) not in self._removed
        )
        return [key for key, count in counts.items() if count > 1]

    def empty(self) -> None:
        for _ in range(20):
            keys = [version["Key"] for version in self._versions("log/", "Versions") if version["IsLatest"]]
            if not keys:
                return
            self._delete([{"Key": key} for key in keys])

    def is_empty(self) -> bool:
        return not self._s3.list_objects_v2(Bucket=self.name, Prefix="log/", MaxKeys=1).get("KeyCount")

    def put_back(self) -> None:
        while True:
            newer = self._newer_versions()
            markers = sorted(
                self._versions("log/", "DeleteMarkers"), key=lambda marker: str(marker["Key"]), reverse=True
            )
            if not newer and not markers:
                return
            self._removed |= {(version["Key"], version["VersionId"]) for version in newer}
            self._delete([_named(version) for version in newer])
            self._delete([_named(marker) for marker in markers if "/0000/" not in marker["Key"]])
            self._delete([_named(marker) for marker in markers if "/0000/" in marker["Key"]])

    def _newer_versions(self) -> list[dict[str, Any]]:
        """What was written under a number that was taken, while its object was away."""
        first: dict[str, Any] = {}
        newer = []
        for version in sorted(self._versions("log/0", "Versions"), key=lambda version: version["LastModified"]):
            if version["Key"] in first:
                newer.append(version)
            else:
                first[version["Key"]] = version
        return newer

    def close(self) -> None:
        self._s3.close()

    def url_for_litestream(self) -> str:
        return f"{self.url}?endpoint={self.endpoint}&region=us-east-1&forcePathStyle=true"

    def _versions(self, prefix: str, what: str) -> list[dict[str, Any]]:
        pages = self._s3.get_paginator("list_object_versions").paginate(Bucket=self.name, Prefix=prefix)
        return [item for page in pages for item in page.get(what, [])]

    def _delete(self, objects: list[dict[str, str]]) -> None:
        for start in range(0, len(objects), _AT_ONCE):
            some = objects[start : start + _AT_ONCE]
            self._s3.delete_objects(Bucket=self.name, Delete={"Objects": some, "Quiet": True})


class Directory(LogPlace):
    """On this machine's disk, shared by several servers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = path.as_uri()
        self._aside = path.with_name(path.name + "-aside")

    def environment(self, endpoint: str = "") -> dict[str, str]:
        return {"REPLICA_URL": self.url, "BACKUP_URL": self.path.with_name("backups").as_uri()}

    def head(self) -> int:
        return max(self.commits(), default=0)

    def commits(self) -> dict[int, bytes]:
        return {_txid(path.name): path.read_bytes() for path in (self.path / "ltx" / "0").glob("*.ltx")}

    def written_again(self) -> list[str]:
        return []  # nothing tells; a file that was replaced shows as a commit that does not follow

    def empty(self) -> None:
        for path in sorted(self.path.iterdir()):
            self._aside.mkdir(exist_ok=True)
            path.rename(self._aside / path.name)

    def is_empty(self) -> bool:
        return not any(self.path.iterdir())

    def put_back(self) -> None:
        for path in sorted(self._aside.rglob("*"), reverse=True):
            target = self.path / path.relative_to(self._aside)
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    path.replace(target)
        shutil.rmtree(self._aside, ignore_errors=True)

    def close(self) -> None:
        pass


def _txid(key: str) -> int:
    low, _, high = Path(key).stem.partition("-")
    assert low == high, key
    return int(low, 16)


def _named(version: Mapping[str, Any]) -> dict[str, str]:
    return {"Key": version["Key"], "VersionId": version["VersionId"]}
