"""Signatures of requests to S3: AWS Signature Version 4, in the header Authorization. Pure.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

#: The hash of a body that is not signed: TLS protects it.
UNSIGNED = "UNSIGNED-PAYLOAD"


class Keys(NamedTuple):
    """Credentials. `token` is empty unless they are temporary."""

    access_key: str
    secret_key: str
    token: str = ""


def escaped(text: str, safe: str = "") -> str:
    """Text for a URL, as the signature wants it: all but letters, digits and `-_.~` is escaped.

    >>> escaped("a b/c~é"), escaped("a/b", safe="/")
    ('a%20b%2Fc~%C3%A9', 'a/b')
    """
    return quote(text, safe=safe)


def query_text(query: Mapping[str, str]) -> str:
    """A query as the signature wants it, which may also be sent.

    >>> query_text({"uploads": "", "partNumber": "1"})
    'partNumber=1&uploads='
    """
    return "&".join(f"{escaped(name)}={escaped(value)}" for name, value in sorted(query.items()))


def signed(
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    keys: Keys,
    region: str,
    time: str,
    body_hash: str,
) -> dict[str, str]:
    """The headers with which to send a request: `headers`, with names in lower case, and those of its signature.

    `path` is escaped; `headers` contains `host`; `time` is like 20261129T174500Z, in UTC; `body_hash` is the SHA-256 of
    the body in hexadecimal digits, or UNSIGNED.
    """
    all_headers = {**headers, "x-amz-content-sha256": body_hash, "x-amz-date": time}
    if keys.token:
        all_headers["x-amz-security-token"] = keys.token
    names = ";".join(sorted(all_headers))
    lines = "".join(f"{name}:{' '.join(all_headers[name].split())}\n" for name in sorted(all_headers))
    request = "\n".join((method, path, query_text(query), lines, names, body_hash))
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", time, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{keys.secret_key}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    signature = _hmac(key, text).hex()
    credential = f"Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**all_headers, "authorization": f"AWS4-HMAC-SHA256 {credential}"}


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
