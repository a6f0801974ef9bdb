"""What an error of obstore says of the request that it ended.

obstore raises text: what its client knows, what the server has answered, and the same again as Rust prints its
structures. A server may answer with any text at all. So nothing is searched for: the text is read from its first
character on, and only as far as the client alone has written it. What is not recognised so says nothing.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

_DEBUG = "\n\nDebug source:\n"
_REQUEST = (
    r"(?:Generic S3 error: (?:Error performing [\w ]+ request: )?"
    r"|The operation lacked [^\n]*?: |Object at location [^\n]*?: )"
    r"Error performing [A-Z]+ (?P<uri>\S+) in \S+ - "
)
_REPLY = re.compile(_REQUEST + r"Server returned non-2xx status code: (?P<status>\d{3}) [^:\n]*: ")
_NO_REPLY = re.compile(_REQUEST + r"HTTP error: error sending request" + _DEBUG)
_NO_WHOLE_REPLY = re.compile(
    r"Generic S3 error: (?:Error getting [\w ]+: )?HTTP error: request or response body error" + _DEBUG
)
# One attempt, since an earlier one may have done it, and the address, since a redirect may have led elsewhere
_NO_CONNECTION = re.compile(
    r'Generic \{ store: "S3", source: (?:\w+ \{ source: )?RetryError\( RetryErrorImpl \{ method: [A-Z]+, '
    r"uri: Some\( \S+, \), retries: 0, max_retries: \d+, elapsed: \S+, retry_timeout: \S+, "
    r"inner: Http\( HttpError \{ kind: (?:Connect|Timeout), source: reqwest::Error \{ kind: Request, "
    r'source: hyper_util::client::legacy::Error\( Connect, ConnectError\( "tcp connect error", (?P<address>\S+), '
)
# What the client prints of a fault, and what that is in words
_CAUSES = {
    r"InvalidCertificate\( UnknownIssuer\b": "its certificate is of an authority that is not known here: "
    "name a file with that authority's certificate in AWS_CA_BUNDLE",
    r"InvalidCertificate\( Expired": "its certificate has expired, or this machine's clock is wrong: "
    "renew the one, or set the other",
    r"InvalidCertificate\( NotValidYet": "its certificate is not valid yet, or this machine's clock is wrong: "
    "exchange the one, or set the other",
    r"InvalidCertificate\( NotValidForName": "its certificate is for another host name: "
    "have one made for this name, or use a name that it is for",
    r"InvalidCertificate\( Other\( OtherError\( CaUsedAsEndEntity\b": "its certificate is that of an authority, "
    "not of a server: have that authority sign one for the server",
    r"InvalidCertificate\( (?:Other\( OtherError\( )?(\w+)": r"its certificate cannot be used (\1)",
    r"InvalidMessage\(": "there is no TLS at this address: does its URL begin with http://?",
    r"AlertReceived\( (\w+)": r"it has ended the TLS handshake (\1)",
    r'\{ code: \d+, kind: \w+, message: "([^"\\]*)"': r"\1",
    r'\{ kind: \w+, error: "([^"\\]*)"': r"\1",
    r"\bTimedOut\b": "timed out",
    r"\bIncomplete\w+": "the connection was closed in the middle of the reply",
    r"hyper::Error\( Parse\(": "the reply is no HTTP",
}
_CODE = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?<Error\b.*?<Code>(\w{1,64})</Code>", re.DOTALL)
_SERVERS_WORDS = re.compile(r"(Got invalid [\w ]+ response|Server returned error response): .*", re.DOTALL)
_CREDENTIALS_FROM = ("http://169.254.169.254/", "http://169.254.170.2/")  # a machine's role, a container's
_PORTS = {"http": 80, "https": 443}

_REFUSALS = (401, 403, 405, 411, 413, 414, 501)  # S3 answers so before it does anything
_PASSING = ("RequestTimeout", "IncompleteBody", "BadDigest")  # a 400, and the next attempt may succeed
_KEYS = "access denied: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
_EXPIRED = "the credentials have expired or are not valid: renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and " + (
    "AWS_SESSION_TOKEN together, or use a role"
)
_NO_BUCKET = "there is no such bucket; create it or correct the URL"
_ADVICE = {
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": _NO_BUCKET,
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "AuthorizationHeaderMalformed": "the request is signed wrongly: check AWS_REGION and the credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong, so S3 takes its signatures for old ones: set it",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """`refusal`: what is wrong and stays wrong, if the store has said so instead of doing anything. `unsent`: whether
    the store has certainly not seen the request.
    """

    summary: str
    status: int = 0  # of the reply; 0: there was none, or nothing tells
    refusal: str = ""
    unsent: bool = False
    without_credentials: bool = False


def ending_of(text: str) -> Ending:
    """Read the text of an error. When it leaves a doubt, there is no refusal and the request may have been seen."""
    if reply := _REPLY.match(text):
        status, uri = int(reply["status"]), reply["uri"]
        code = _code(text[reply.end() :].rpartition(_DEBUG)[0])
        summary = f"{reply[0].rstrip(': ')} {code}".rstrip()
        if uri.startswith(_CREDENTIALS_FROM):
            return Ending(summary, unsent=True, without_credentials=True)
        return Ending(summary, status, _refusal(status, code))
    if fault := _NO_REPLY.match(text):
        debug = " ".join(text[fault.end() :].split())
        summary = fault[0].removesuffix(_DEBUG) + _cause(debug)
        if fault["uri"].startswith(_CREDENTIALS_FROM):
            return Ending(summary, unsent=True, without_credentials=True)
        failed = _NO_CONNECTION.match(debug)
        return Ending(summary, unsent=bool(failed) and _is_at(fault["uri"], failed["address"] if failed else ""))
    if fault := _NO_WHOLE_REPLY.match(text):
        return Ending(fault[0].removesuffix(_DEBUG) + _cause(" ".join(text[fault.end() :].split())))
    return Ending(" ".join(_SERVERS_WORDS.sub(r"\1", text.partition(_DEBUG)[0]).split())[:500])


def _cause(debug: str) -> str:
    """For a reader alone: whether a request was sent is never decided by it."""
    for pattern, words in _CAUSES.items():
        if found := re.search(pattern, debug):
            return f": {found.expand(words)}"
    return ""


def _code(body: str) -> str:
    """S3 answers with the caller's key id and more; the error's name is all that anybody needs of it."""
    found = _CODE.match(body)
    return found[1] if found else ""


def _refusal(status: int, code: str) -> str:
    if status in (400, 404):
        if not code or code in _PASSING or (status == 404 and _ADVICE.get(code) != _NO_BUCKET):
            return ""
    elif status not in _REFUSALS:
        return ""
    return _ADVICE.get(code) or ("access denied" if status in (401, 403) else "the store refuses this request")


def _is_at(uri: str, address: str) -> bool:
    """Whether a socket's address may be a URI's. Of a name only the port can be compared."""
    parts, (host, _, port) = urlsplit(uri), address.rpartition(":")
    if port != str(parts.port or _PORTS[parts.scheme]):
        return False
    try:
        return ip_address(parts.hostname or "") == ip_address(host.strip("[]"))
    except ValueError:
        return True
