"""Addresses of object stores, checked before anybody uses them.

The store's client silently drops the parts of a URL that it does not know, and panics over some.
"""

import re
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

HOME_UNKNOWN = "only a shell knows what ~ is: write the whole path"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?")
# what may follow these is a password or a signature
_PRIVATE = re.compile(r"(?<=//)[^/]*[@:].*|(?<=[?#]).*", re.DOTALL)


def check_store_url(url: str) -> None:
    """Raises ValueError for anything but s3://bucket/prefix and file:///directory."""
    try:
        parts = urlsplit(url)
        path = unquote(parts.path, errors="strict")
    except ValueError:
        raise ValueError("is not a URL in UTF-8") from None
    if parts.scheme not in ("s3", "file") or not url.startswith(f"{parts.scheme}://"):
        raise ValueError("should be s3://bucket/prefix or file:///directory")
    if parts.scheme == "file" and (parts.netloc or not path.startswith("/")):
        raise ValueError("should be file:///directory, with three slashes")
    if parts.scheme == "file" and path.lstrip("/").startswith("~"):
        raise ValueError(HOME_UNKNOWN)
    if parts.scheme == "s3" and not _BUCKET.fullmatch(parts.netloc):
        raise ValueError("should have a bucket name, and no user or port, after s3://")
    if "?" in url or "#" in url:
        raise ValueError("should have no query and no fragment (in a name, ? is %3F and # is %23)")
    segments = path.strip("/").split("/")
    if not (url + path).isprintable() or {".", ".."} & set(segments) or (parts.scheme == "s3" and "//" in path):
        raise ValueError("should have no control characters and no empty, '.' or '..' segments")


def check_endpoint(url: str) -> None:
    """Raises ValueError for anything but http[s]://host[:port][/path]."""
    match = _ENDPOINT.fullmatch(url)
    try:
        if match and urlsplit(url).port != 0:
            host = match[1].strip("[]")
            if match[1].startswith("[") or host.rstrip(".").rpartition(".")[2].isdecimal():
                ip_address(host)
            return
    except ValueError:
        pass
    raise ValueError("should be http://host:port or https://host")


def redacted(url: str) -> str:
    """Replace what may be a password or a signature, so that the URL may be shown."""
    return _PRIVATE.sub("***", url)
