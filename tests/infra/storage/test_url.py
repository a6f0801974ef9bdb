import pytest

from infra.storage.url import check_endpoint, check_store_url, redacted


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/a/b c/",
        "s3://My_bucket.x/a%20b",
        "file:///data/backups",
        "file:///a%20b/%C3%A4",
        "file:///ä",
        "s3://bucket/mail@example",
    ],
)
def test_place_for_objects_is_accepted(url: str) -> None:
    check_store_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///x",
        "s3:bucket",
        "S4://bucket",
        "http://[",
        "s3://bucket name/x",
        "s3://b\u00fccket/x",
        "s3://bucket:9000/x",
        "s3://user@bucket/x",
        "s3://user:password@bucket/x",
        "s3://bucket/x?",
        "s3://bucket/x?region=x",
        "s3://bucket/x#",
        "file:///x?y",
        "file:///x#y",
        "s3://bucket/a%00b",
        "s3://bucket/%ff",
        "s3://bucket/x\n",
        "file:///%00",
        "file:///\udcff",
        "s3://bucket/../x",
        "s3://bucket/a/%2e%2e/x",
        "s3://bucket/./x",
        "s3://bucket/a//b",
        "file:///a/../b",
        "file://data/backups",
        "file:data",
        "/plain/path",
        "ftp://x",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(should|is not a URL)"):
        check_store_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:9000",
        "https://s3.example.com",
        "http://minio_1/path",
        "http://[::1]:9",
        "http://1.2.3.4",
    ],
)
def test_endpoint_is_accepted(url: str) -> None:
    check_endpoint(url)


@pytest.mark.parametrize(
    "url",
    [
        "garbage",
        "http://",
        "//host",
        "ftp://host",
        "http://a b",
        "http://host/a b",
        "http://host\n",
        "http://h\u00f6st",
        "http://host:",
        "http://host:x",
        "http://host:0",
        "https://host:99999",
        "http://host?x",
        "http://host#x",
        "http://256.1.1.1",
        "http://1.2.3.4.5",
        "http://[::g]",
        "http://[1.2.3.4]",
        "http://user:password@host",
    ],
)
def test_other_endpoints_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="should be http"):
        check_endpoint(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://KEY:SEC/RET@bucket/x", "s3://***"),
        ("https://KEY:SECRET@host", "https://***"),
        ("s3://KEY@bucket/x", "s3://***"),
        ("s3://bucket/x?signature=SECRET", "s3://bucket/x?***"),
        ("s3://bucket/x#SECRET", "s3://bucket/x#***"),
        ("ftp://x", "ftp://x"),
        ("s3://bucket name/x", "s3://bucket name/x"),
    ],
)
def test_what_may_be_a_secret_is_not_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown
