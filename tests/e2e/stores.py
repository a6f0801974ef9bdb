"""S3 servers to test against: two independent implementations, each in a process of its own."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import boto3
from botocore.config import Config

from tests.e2e.processes import StartProcess, free_port, listens, until

# moto looks whether a key is there and then stores it, without a lock between: so it gets one
_MOTO = """
import sys, threading
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

lock = threading.Lock()
moto = DomainDispatcherApplication(create_backend_app)

def application(environ, start_response):
    with lock:
        return list(moto(environ, start_response))

run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)
"""
_bucket_numbers = count(1)


class S3:
    """One bucket, as whoever owns it sees it: past the service, and past any proxy."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.bucket = f"bucket-{next(_bucket_numbers)}"
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )
        self._client.create_bucket(Bucket=self.bucket)
        # Shows whether anything was ever overwritten
        self._client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """For a process that uses the bucket, through a proxy if its endpoint is given."""
        return {
            "AWS_ENDPOINT_URL_S3": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "REPLICA_URL": self.url("log"),
            "BACKUP_URL": self.url("backups"),
        }

    def url(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"

    def keys(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def versions(self, prefix: str) -> Counter[str]:
        """How often each key was written."""
        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=prefix)
        return Counter(item["Key"] for page in pages for item in page.get("Versions", []))

    def content(self, prefix: str) -> dict[str, bytes]:
        return {key: self.read(key) for key in self.keys(prefix)}

    def read(self, key: str) -> bytes:
        body: bytes = self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def write(self, key: str, body: bytes) -> None:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.bucket, Key=key)

    def close(self) -> None:
        self._client.close()


@contextmanager
def bucket_at(endpoint: str) -> Iterator[S3]:
    s3 = S3(endpoint)
    yield s3
    s3.close()


def start_ministack(start_process: StartProcess) -> str:
    """Its endpoint."""
    port = free_port()
    start_process(
        f"{sys.prefix}/bin/ministack",
        BIND_HOST="127.0.0.1",
        GATEWAY_PORT=str(port),
        SERVICES="s3",
        IOT_MTLS_ENABLED="0",  # it would listen on every interface
        LOG_LEVEL="WARNING",
    )
    return _answering(port)


def start_moto(start_process: StartProcess) -> str:
    port = free_port()
    start_process(sys.executable, "-c", _MOTO, str(port))
    return _answering(port)


def _answering(port: int) -> str:
    until(lambda: listens(port))
    return f"http://127.0.0.1:{port}"
