"""Multipart uploads and listings over plain HTTP, for the engine obstore.

Its library can neither complete an upload at a later time nor list page by page. s3fs can, but its import takes 36 MB
of memory more, and a page 1 ms of CPU more.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import http.client
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from stagger.storage.faults import BrokenOff, WrongAnswer
from stagger.storage.s3.engine import PAGE_KEYS, Page, quoted
from stagger.storage.s3.signature import UNSIGNED, Keys, escaped, query_text, signed

#: Limits in seconds for connecting, and for each read or write.
CONNECT_S, READ_S = 10.0, 60.0

#: Methods of requests that may go over the connection of an earlier one: they may come twice without harm.
KEPT = ("GET", "PUT")

#: Seconds for which a connection without a request is kept: stores close theirs after 5 s and more.
IDLE_S = 4.0


@dataclass(frozen=True)
class Place:
    """Where a store is, and how requests to it are signed. `headers` are sent with each request."""

    endpoint: str
    region: str
    keys: Callable[[], Keys]
    headers: Mapping[str, str]


class Answer(Exception):
    """An answer that is no success. `response` has the form of botocore's, which faults.py and refusals.py read."""

    def __init__(self, status: int, body: bytes) -> None:
        code = tag(body, "Code") or str(status)
        message = tag(body, "Message") or http.client.responses.get(status, "")
        super().__init__(f"{code}: {message}")
        self.response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}


class PlainRequests:
    """The requests of multipart uploads and listings, each tried once. Several threads may use it.

    Raises FileNotFoundError for 404, Answer for other refusals, and the errors of http.client.
    """

    def __init__(self, place: Place) -> None:
        self._idle: deque[tuple[float, http.client.HTTPConnection]] = deque()  # And since when each is.
        self._place = place
        self._parts = urlsplit(place.endpoint)
        self.keyed: set[str] = set()

    def __del__(self) -> None:
        self._close_kept()

    def begin_upload(self, bucket: str, key: str) -> str:
        body, _ = self._ask("POST", bucket, key, {"uploads": ""})
        if not (upload := tag(body, "UploadId")):
            raise WrongAnswer("the answer to a multipart upload has no upload id")
        return upload

    def put_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        query = {"partNumber": str(number), "uploadId": upload}
        _, headers = self._ask("PUT", bucket, key, query, data)
        return quoted(headers.get("ETag", ""))

    def complete_upload(self, bucket: str, key: str, upload: str, parts: list[str]) -> str:
        self._close_kept()
        items = (
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(etag)}</ETag></Part>"
            for number, etag in enumerate(parts, 1)
        )
        text = f"<CompleteMultipartUpload>{''.join(items)}</CompleteMultipartUpload>"
        body, _ = self._ask("POST", bucket, key, {"uploadId": upload}, text.encode())
        if b"<Error>" in body:  # S3 begins to answer 200 before it knows.
            raise Answer(500, body)
        return quoted(tag(body, "ETag"))

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        self._close_kept()
        self._ask("DELETE", bucket, key, {"uploadId": upload})

    def page(self, bucket: str, prefix: str, *, recursive: bool, more: str, after: str = "") -> Page:
        from stagger.storage.s3.listing import page_of  # Tasks list nothing.

        query = {"list-type": "2", "prefix": prefix, "max-keys": str(PAGE_KEYS), "encoding-type": "url"}
        if not recursive:
            query["delimiter"] = "/"
        if more:
            query["continuation-token"] = more
        elif after:
            query["start-after"] = after
        body, _ = self._ask("GET", bucket, "", query)
        if (page := page_of(body)) is None:
            if b"<Error>" in body:
                raise Answer(500, body)
            if b"<ListBucketResult" in body:
                raise BrokenOff("the end of a page of the listing is missing")
            raise WrongAnswer("the answer to a request for a listing is not a listing")
        return page

    def _ask(
        self, method: str, bucket: str, key: str, query: dict[str, str], data: bytes = b""
    ) -> tuple[bytes, http.client.HTTPMessage]:
        path = f"{self._parts.path.rstrip('/')}/{escaped(f'{bucket}/{key}', safe='/')}"
        body_hash = UNSIGNED if self._parts.scheme == "https" else hashlib.sha256(data).hexdigest()
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        headers = {**self._place.headers, "host": self._parts.netloc}
        headers = signed(method, path, query, headers, self._place.keys(), self._place.region, now, body_hash)
        with self._connection(keep=method in KEPT) as connection:
            connection.request(method, f"{path}?{query_text(query)}", data, headers)
            answer = connection.getresponse()
            body = answer.read()
        if answer.status == 404:
            raise FileNotFoundError(key) from Answer(404, body)
        if answer.status not in (200, 204):
            raise Answer(answer.status, body)
        if is_keyed(answer.headers):
            self.keyed.add(bucket)
        return body, answer.headers

    @contextlib.contextmanager
    def _connection(self, *, keep: bool) -> Iterator[http.client.HTTPConnection]:
        """A connection for one request. With `keep` it may be that of the request before, and is kept for the next."""
        connection = (self._kept() if keep else None) or self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if keep and connection.sock is not None:  # The store did not close it.
            self._idle.append((time.monotonic(), connection))
        else:
            connection.close()

    def _kept(self) -> http.client.HTTPConnection | None:
        """A connection that the store has not closed meanwhile, in all likelihood."""
        with contextlib.suppress(IndexError):  # There is none left.
            while True:
                since, connection = self._idle.pop()
                if time.monotonic() - since < IDLE_S:
                    return connection
                connection.close()
        return None

    def _close_kept(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop()[1].close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=CONNECT_S)
        connection.connect()
        connection.sock.settimeout(READ_S)
        return connection


def tag(body: bytes, name: str) -> str:
    """The text of the first element `name` of an answer in XML; empty if there is none.

    >>> tag(b"<R><ETag>&quot;a&quot;</ETag></R>", "ETag"), tag(b"<R/>", "ETag")
    ('"a"', '')
    """
    found = re.search(f"<{name}>([^<]*)</{name}>".encode(), body)
    return html.unescape(found[1].decode(errors="replace")).strip() if found else ""


def is_keyed(headers: http.client.HTTPMessage) -> bool:
    """Whether an answer tells that the bucket encrypts with keys, so that its ETags are no MD5s."""
    kms = str(headers.get("x-amz-server-side-encryption", "")).startswith("aws:kms")
    return kms or "x-amz-server-side-encryption-customer-algorithm" in headers
