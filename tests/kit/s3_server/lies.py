"""Lies: answers that are well-formed and wrong, as of stores with bugs, of proxies, and of stores that are not S3."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

from tests.kit.s3_server.protocol import Operation, Request, Response, S3Error, failed, xml
from tests.kit.s3_server.store import Memory, StoredObject, md5

#: Answers a request falsely. Gets the operations, the request, and the operation that would answer truly.
Lie = Callable[[Any, Request, Operation], Response]

#: Continuation tokens that were never given before.
TOKENS = itertools.count()

PAGE = "<!DOCTYPE html><html><head><title>Log in</title></head><body><p>Log in to use this network.</p></body></html>"


def text_of(response: Response) -> str:
    assert response.content is not None
    return bytes(response.content.read(response.start, response.stop)).decode()


def edited(edit: Callable[[str], str]) -> Lie:
    """The true answer, changed as a text."""
    return lambda s3, request, truly: Response.of(edit(text_of(truly(s3, request))), content_type="application/xml")


def more(token: Callable[[], str], *, keys: bool) -> Lie:
    """A listing that goes on at the page `token`."""

    def edit(body: str) -> str:
        body = body if keys else re.sub(r"<Contents>.*</Contents>", "", body)
        body = re.sub(r"<NextContinuationToken>.*</NextContinuationToken>", "", body)
        following = token()
        after = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
        return re.sub(r"<IsTruncated>\w+", f"{after}<IsTruncated>true", body)

    def lie(s3: Any, request: Request, truly: Operation) -> Response:
        request.query.pop("continuation-token", None)  # Made up by an earlier lie.
        return edited(edit)(s3, request, truly)

    return lie


def twice(body: str) -> str:
    return re.sub(r"(<Contents>.*?</Contents>)", r"\1\1", body, count=1)


def answer(response: Response) -> Lie:
    return lambda s3, request, truly: response


def kept(change: Callable[[bytes], bytes], headers: str = "", etag: Callable[[str], str] = lambda own: own) -> Lie:
    """Keep an object, or a part, with other content or another ETag, and answer with its ETag."""

    def lie(s3: Any, request: Request, truly: Operation) -> Response:
        request.decode_body()
        request.headers["content-encoding"] = request.headers["x-amz-content-sha256"] = ""
        request.body = change(request.body)
        for name in [name for name in request.headers if name.startswith(("x-amz-checksum", "content-md5"))]:
            del request.headers[name]
        request.trailers = {}
        response = truly(s3, request)
        if response.status == 200 and request.kind == "PutObject":
            stored = s3.bucket(request).objects[request.key]
            stored.etag = etag(stored.etag)
            return Response(200, f'ETag: "{stored.etag}"\r\n{headers}')
        return response

    return lie


def lost(s3: Any, request: Request, truly: Operation) -> Response:
    return Response(200, f'ETag: "{md5(b"something else")}"\r\n')


def assembled(etag: str) -> Lie:
    """Complete an upload, and give the object an ETag of its own."""

    def lie(s3: Any, request: Request, truly: Operation) -> Response:
        truly(s3, request)
        s3.bucket(request).objects[request.key].etag = etag
        return xml("CompleteMultipartUploadResult", f"<ETag>&quot;{etag}&quot;</ETag>")

    return lie


def body(change: Callable[[Request, Response, StoredObject], Response]) -> Lie:
    """The answer to a GET, changed."""

    def lie(s3: Any, request: Request, truly: Operation) -> Response:
        response = truly(s3, request)
        if response.status not in (200, 206):
            return response
        return change(request, response, s3.find(s3.bucket(request), request.key))

    return lie


def another_range(request: Request, response: Response, stored: StoredObject) -> Response:
    if response.status == 200:  # Half of it: the rest will be asked for.
        return dataclasses.replace(response, stop=response.stop // 2) if response.stop > 1 else response
    start, size = max(0, response.start - 10), stored.content.size
    headers = re.sub(r"Content-Range: .*", f"Content-Range: bytes {start}-{size - 1}/{size}", response.headers)
    return dataclasses.replace(response, headers=headers.rstrip() + "\r\n", start=start, stop=size)


def whole(request: Request, response: Response, stored: StoredObject) -> Response:
    headers = re.sub(r"Content-Range: .*\r\n", "", response.headers)
    return Response(200, headers, response.content, 0, stored.content.size)


def another_version(request: Request, response: Response, stored: StoredObject) -> Response:
    content = Memory(bytes(reversed(bytes(stored.content.read(0, stored.content.size)))))
    headers = re.sub(r"ETag: .*\r\n", f'ETag: "{md5(content.data)}"\r\n', response.headers)
    return dataclasses.replace(response, headers=headers, content=content)


def longer(request: Request, response: Response, stored: StoredObject) -> Response:
    data = bytes(stored.content.read(0, stored.content.size)) * 2
    return Response(200, response.headers, Memory(data), 0, len(data))


def mismatched(s3: Any, request: Request, truly: Operation) -> Response:
    """412 to any If-Match, as of a store that compares ETags in another form than it answers them."""
    if request.header("if-match"):
        raise failed("If-Match")
    return truly(s3, request)


def unconditional(s3: Any, request: Request, truly: Operation) -> Response:
    request.headers = {name: value for name, value in request.headers.items() if not name.startswith("if-")}
    return truly(s3, request)


def refused(*names: str) -> Lie:
    """501 to a request with one of these headers."""

    def lie(s3: Any, request: Request, truly: Operation) -> Response:
        if any(name.startswith(names) for name in request.headers):
            raise S3Error(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        return truly(s3, request)

    return lie


def short(data: bytes) -> bytes:
    return data[:-10]


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def same(data: bytes) -> bytes:
    return data


#: Name -> (the kinds of requests that are answered so, the lie).
LIES: dict[str, tuple[tuple[str, ...], Lie]] = {
    "list-twice": (("ListObjectsV2",), edited(twice)),
    "list-loop": (("ListObjectsV2",), more(lambda: "aGVsbG8=", keys=True)),
    "list-empty": (("ListObjectsV2",), more(lambda: f"{next(TOKENS):08d}", keys=False)),
    "list-loop-empty": (("ListObjectsV2",), more(lambda: f"{next(TOKENS) % 2:08d}", keys=False)),
    "list-cut": (("ListObjectsV2",), more(lambda: "", keys=True)),
    "list-bare": (("ListObjectsV2",), edited(lambda text: text.replace("&quot;", ""))),
    "list-page": (("ListObjectsV2",), answer(Response.of(PAGE, content_type="text/html"))),
    "list-nothing": (("ListObjectsV2",), answer(Response.of(""))),
    "list-broken": (("ListObjectsV2",), edited(lambda text: text[: len(text) // 2])),
    "put-lost": (("PutObject",), lost),
    "put-short": (("PutObject",), kept(short)),
    "put-flipped": (("PutObject",), kept(flipped)),
    "put-page": (("PutObject",), answer(Response.of(PAGE, content_type="text/html"))),
    "put-kms": (("PutObject",), kept(same, "x-amz-server-side-encryption: aws:kms\r\n", lambda own: own[::-1])),
    "put-opaque": (("PutObject",), kept(same, "", lambda own: own[::-1])),
    "put-opaque-short": (("PutObject",), kept(short, "", lambda own: own[::-1])),
    "put-named": (("PutObject",), kept(same, "", lambda own: f"version-{own}")),
    "put-capitals": (("PutObject",), kept(same, "", str.upper)),
    "part-short": (("UploadPart",), kept(short)),
    "complete-empty": (("CompleteMultipartUpload",), answer(Response(200))),
    "complete-other": (
        ("CompleteMultipartUpload",),
        answer(xml("CompleteMultipartUploadResult", "<ETag>&quot;x&quot;</ETag>")),
    ),
    "complete-error": (
        ("CompleteMultipartUpload",),
        answer(Response.of("<Error><Code>InternalError</Code><Message>no</Message></Error>")),
    ),
    "complete-named": (("CompleteMultipartUpload",), assembled("version-7")),
    "get-range": (("GetObject",), body(another_range)),
    "get-whole": (("GetObject",), body(whole)),
    "get-version": (("GetObject",), body(another_version)),
    "get-longer": (("GetObject",), body(longer)),
    "get-page": (("GetObject",), answer(Response.of(PAGE, content_type="text/html"))),
    "get-mismatch": (("GetObject",), mismatched),
    "no-conditions": (("PutObject",), unconditional),
    "no-create": (("PutObject",), refused("if-none-match")),
    "no-checksums": (("PutObject",), refused("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")),
}
