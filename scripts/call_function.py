"""Call a function URL that asks for IAM signatures, with nothing but the standard library.

    python scripts/call_function.py "$FUNCTION_URL/api/items"
    python scripts/call_function.py "$FUNCTION_URL/api/items" '{"name": "Lamp"}'     # a POST; -X names another method

Credentials and region are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (if there is one) and AWS_REGION.
The caller needs lambda:InvokeFunctionUrl and lambda:InvokeFunction. Exit code 0 for an answer below 400, else 1.
The signature is AWS Signature Version 4:
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import argparse
import hashlib
import hmac
import os
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit

ALGORITHM = "AWS4-HMAC-SHA256"
NEEDED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")


def signed_headers(method: str, url: str, body: bytes, now: datetime) -> dict[str, str]:
    """The headers that make a request of service `lambda` a signed one; it is valid for five minutes around `now`."""
    address = urlsplit(url)
    scope = f"{now:%Y%m%d}/{os.environ['AWS_REGION']}/lambda/aws4_request"
    headers = {"host": address.netloc, "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}"}
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    names = ";".join(sorted(headers))
    query = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in parse_qsl(address.query, True))
    canonical = "\n".join(
        [
            method,
            quote(address.path or "/"),  # once more: the path in the URL is encoded already
            "&".join(f"{name}={value}" for name, value in query),
            *(f"{name}:{headers[name]}" for name in sorted(headers)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        ]
    )
    signed = "\n".join([ALGORITHM, headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{os.environ['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in [*scope.split("/"), signed]:
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"{os.environ['AWS_ACCESS_KEY_ID']}/{scope}"
    headers["authorization"] = f"{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={key.hex()}"
    return headers


def main() -> int:
    parser = argparse.ArgumentParser(description="Call a function URL with a signed request.")
    parser.add_argument("url")
    parser.add_argument("body", nargs="?", default="", help="JSON")
    parser.add_argument("-X", dest="method", help="GET, or POST if there is a body")
    arguments = parser.parse_args()
    if not arguments.url.startswith(("https://", "http://")):
        parser.error(f"{arguments.url!r} is no function URL: it begins with https://")
    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        parser.error(f"{', '.join(missing)} must be set")
    body = arguments.body.encode()
    method = arguments.method or ("POST" if body else "GET")
    headers = signed_headers(method, arguments.url, body, datetime.now(UTC))
    if body:
        headers["content-type"] = "application/json"
    request = urllib.request.Request(arguments.url, body or None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=70) as answer:
            print(answer.read().decode())
    except urllib.error.HTTPError as error:
        print(error.read().decode())
        print(f"{error.code} {error.reason}", file=sys.stderr)
        return 1
    except urllib.error.URLError as error:
        print(f"{arguments.url} does not answer: {error.reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
