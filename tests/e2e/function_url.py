"""A function URL: checks a request's signature as AWS does and hands it to the function as an event."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.e2e.emulator import EVENTS, Emulator

REGION = "eu-central-1"
CREDENTIALS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "a/token+that==is&signed")
USER = "arn:aws:iam::123456789012:user/somebody"
_AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=([^,]+), ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})")


@contextmanager
def function_url(function: Emulator) -> Iterator[str]:
    """Its address, without the slash at the end."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            url = f"http://{headers['host']}{self.path}"
            if trouble := _trouble(self.command, url, headers, body):
                self._answer(403, {"content-type": "application/json"}, json.dumps({"Message": trouble}).encode())
                return
            answer = function.invoke(_event(self.command, self.path, headers, body))
            content = answer["body"].encode()
            self._answer(
                answer["statusCode"],
                answer["headers"],
                base64.b64decode(content) if answer["isBase64Encoded"] else content,
            )

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _trouble(method: str, url: str, headers: dict[str, str], body: bytes) -> str:
    """What AWS would refuse the request for; botocore, the AWS CLI's signer, does the arithmetic."""
    if not (claimed := _AUTHORIZATION.fullmatch(headers.get("authorization", ""))):
        return "Missing Authentication Token"
    credential, names, signature = claimed.groups()
    sent = headers["x-amz-date"]
    if abs(datetime.strptime(f"{sent}+0000", "%Y%m%dT%H%M%SZ%z") - datetime.now(UTC)) > timedelta(minutes=5):
        return "Signature expired"
    if credential != f"{CREDENTIALS.access_key}/{sent[:8]}/{REGION}/lambda/aws4_request":
        return f"Credential should be scoped to a valid region and service: {credential}"
    if not {"host", "x-amz-date"} <= set(names.split(";")):
        return "host and x-amz-date must be signed"
    if headers.get("x-amz-security-token") != CREDENTIALS.token:
        return "The security token included in the request is invalid."
    signed = {name: headers[name] for name in names.split(";")}
    request = AWSRequest(method, url, signed, body)
    request.context["timestamp"] = sent
    signer = SigV4Auth(CREDENTIALS, "lambda", REGION)
    expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    return "" if signature == expected else "The request signature we calculated does not match"


def _event(method: str, target: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads((EVENTS / "function_url_create.json").read_text())
    path, _, query = target.partition("?")
    event.update(rawPath=path, rawQueryString=query, headers=headers, isBase64Encoded=False, body=body.decode() or None)
    event["requestContext"]["http"].update(method=method, path=path, userAgent=headers.get("user-agent", ""))
    event["requestContext"]["authorizer"] = {
        "iam": {
            "accessKey": CREDENTIALS.access_key,
            "accountId": "123456789012",
            "callerId": "AIDAEXAMPLE",
            "cognitoIdentity": None,
            "principalOrgId": None,
            "userArn": USER,
            "userId": "AIDAEXAMPLE",
        }
    }
    return event
