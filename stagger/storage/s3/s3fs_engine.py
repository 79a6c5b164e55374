"""The S3 engine of s3fs and botocore, with all of s3fs's options."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import botocore.config
import botocore.session
import s3fs
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError
from fsspec.asyn import sync

from stagger.errors import StaggerError, StorageError, counted
from stagger.storage import S3_CONNECTIONS, Entry
from stagger.storage.faults import BrokenOff, WrongAnswer, status_of
from stagger.storage.s3 import listing
from stagger.storage.s3.engine import CHUNK_BYTES, PAGE_KEYS, Body, Changed, Page, check_range, quoted

#: Retries are off: stagger retries, and the attempts of two retrying layers would multiply.
CONFIG = {"max_pool_connections": S3_CONNECTIONS, "connect_timeout": 10, "read_timeout": 60}
RETRIES = {"total_max_attempts": 1, "mode": "standard"}

#: Domains of AWS's own endpoints.
AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".api.aws", ".api.amazonwebservices.com.cn")

#: botocore's checksum settings. Other stores reject its default, or do not know it.
CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")

#: Seconds after which a piece of a body is handed over, however little of it has arrived.
PIECE_S = 30.0

#: botocore's event before it parses a listing. With `*` for the service, it comes before botocore's own handler, which
#: would parse the whole listing only to look for an error.
BEFORE_PARSE = "before-parse.*.ListObjectsV2"

#: Error codes for an object that is not there. A missing bucket or upload has another code.
GONE = ("NoSuchKey", "404")


class S3fsEngine:
    """An `Engine` over s3fs's `call_s3`: s3fs finds credentials, endpoints and settings as usual."""

    def __init__(self, options: dict[str, Any], why: str = "") -> None:
        """`why` is the reason why obstore could not be taken."""
        self.name = f"s3fs, as obstore cannot serve this: {why}" if why else "s3fs"
        self.keyed: set[str] = set()
        try:
            given = options.get("config_kwargs", {})
            config = {**CONFIG, **checksum_settings(options), **given, "retries": RETRIES}
            self._files = s3fs.S3FileSystem(
                **{**options, "config_kwargs": config}, use_listings_cache=False, skip_instance_cache=True
            )
            self._files.retries = 1
            with contextlib.suppress(NoCredentialsError, PartialCredentialsError):  # The first request reports them.
                self._files.connect()  # Sends no request, but reveals wrong options.
                self._files.s3.meta.events.register(BEFORE_PARSE, listing.parse)
        except (TypeError, KeyError, ValueError, BotoCoreError) as error:
            raise StaggerError(f"storage_options of s3: {type(error).__name__}: {error}") from error

    def _call(self, method: str, **request: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", self._files.call_s3(method, **request))

    def get(self, bucket: str, key: str, start: int, end: int | None, version: str) -> Body:
        request: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if start or end is not None:
            request["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if version:
            request["IfMatch"] = version
        try:
            answer = self._call("get_object", **request)
        except OSError as error:
            if status_of(error) == 416:
                return Body(version, iter(()))
            if status_of(error) == 412:
                raise Changed from error
            raise
        length = total = answer.get("ContentLength", -1)
        try:
            if "Range" in request or "ContentRange" in answer:
                length, total = check_range(answer.get("ContentRange", ""), start, end)
        except WrongAnswer:
            self._close(answer["Body"])
            raise
        return Body(etag_in(answer), self._chunks(answer["Body"], length), total)

    def _close(self, body: Any) -> None:
        self._files.loop.call_soon_threadsafe(body.close)

    def _chunks(self, body: Any, length: int) -> Iterator[bytes]:
        """The pieces of a body of `length` bytes; of any length if that is -1, as without a Content-Length."""
        broken: list[Exception] = []

        async def gather() -> bytes:
            pieces: list[bytes] = []
            size = 0
            end = time.monotonic() + PIECE_S
            try:
                while size < CHUNK_BYTES and (piece := await body.read(CHUNK_BYTES - size)):
                    pieces.append(piece)
                    size += len(piece)
                    if time.monotonic() > end:
                        break
            except Exception as error:
                broken.append(error)  # Keep the bytes that have arrived.
            return b"".join(pieces)

        left = length
        try:
            # Read on until an empty read after the last byte: only then botocore verifies the checksum, if any.
            while chunk := cast("bytes", sync(self._files.loop, gather)):
                left -= len(chunk)
                if left < 0 <= length:
                    raise WrongAnswer(f"the body is longer than the {counted(length, 'byte')} that the store announced")
                yield chunk
                if broken:
                    break
            if broken:
                raise broken[0]
            if left > 0:
                raise BrokenOff(f"{counted(left, 'byte', 'is')} missing")
        finally:
            self._close(body)

    def put(self, bucket: str, key: str, data: bytes, *, create: bool = False, match: str = "") -> str:
        with conditional(key, create=create, match=match) as condition:
            answer = self._call("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        return self._written(bucket, answer)

    def _written(self, bucket: str, answer: dict[str, Any]) -> str:
        """The ETag of what was written."""
        if str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer:
            self.keyed.add(bucket)
        return etag_in(answer)

    def delete(self, bucket: str, key: str, *, match: str = "") -> None:
        condition = {"IfMatch": match} if match else {}
        try:
            self._call("delete_object", Bucket=bucket, Key=key, **condition)
        except OSError as error:
            if status_of(error) == 412:
                raise Changed from error
            raise

    def head(self, bucket: str, key: str) -> Entry | None:
        try:
            answer = self._call("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None
        if "ContentLength" not in answer:
            raise WrongAnswer("the answer to HEAD has no Content-Length")
        return Entry(key, answer["ContentLength"], etag_in(answer))

    def page(self, bucket: str, prefix: str, *, recursive: bool, more: str, after: str = "") -> Page:
        request = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS}
        if not recursive:
            request["Delimiter"] = "/"
        if more:
            request["ContinuationToken"] = more
        elif after:
            request["StartAfter"] = after
        page = self._call("list_objects_v2", **request).get(listing.PAGE)
        if page is None:
            raise WrongAnswer("the answer to a request for a listing is not a listing")
        return cast("Page", page)

    def has_bucket(self, bucket: str) -> bool:
        try:
            self._call("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except FileNotFoundError:
            return False
        return True

    def begin_upload(self, bucket: str, key: str) -> str:
        answer = self._call("create_multipart_upload", Bucket=bucket, Key=key)
        if not answer.get("UploadId"):
            raise WrongAnswer("the answer to a multipart upload has no upload id")
        return str(answer["UploadId"])

    def put_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        part = {"UploadId": upload, "PartNumber": number, "Body": data}
        return self._written(bucket, self._call("upload_part", Bucket=bucket, Key=key, **part))

    def complete_upload(self, bucket: str, key: str, upload: str, parts: list[str]) -> str:
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(parts, 1)]
        request = {"UploadId": upload, "MultipartUpload": {"Parts": listed}}
        return self._written(bucket, self._call("complete_multipart_upload", Bucket=bucket, Key=key, **request))

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        self._call("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        more: dict[str, str] = {}
        asked: list[dict[str, str]] = []
        while True:
            asked.append(more)
            answer = self._call("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **more)
            found += [(item["Key"], item["UploadId"]) for item in answer.get("Uploads", ())]
            if not answer.get("IsTruncated"):
                return found
            names = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
            more = {marker: str(answer.get(name) or "") for marker, name in names.items()}
            if not more["KeyMarker"] or more in asked:
                raise StorageError("the list of uploads does not end: the store names no next page, or one twice")


@contextlib.contextmanager
def conditional(key: str, *, create: bool, match: str) -> Iterator[dict[str, str]]:
    """The conditions of a PUT as botocore's parameters; its rejection as FileExistsError or Changed."""
    try:
        yield {**({"IfNoneMatch": "*"} if create else {}), **({"IfMatch": match} if match else {})}
    except OSError as error:
        status = status_of(error)
        if create and status == 412:
            raise FileExistsError(key) from error
        if match and (status == 412 or code_of(error) in GONE):
            raise Changed from error
        raise


def etag_in(answer: dict[str, Any]) -> str:
    """The ETag of an answer or a listed object; empty if it has none."""
    return quoted(str(answer.get("ETag", "")))


def checksum_settings(options: dict[str, Any]) -> dict[str, str]:
    """Checksums only where S3 requires them, for an endpoint that is not AWS's and as far as the user sets nothing."""
    session = botocore.session.Session(profile=options.get("profile"))
    scoped = session.get_scoped_config()
    endpoint = options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url")
    endpoint = endpoint or ConfiguredEndpointProvider(session.full_config, scoped, "s3").provide()
    known = [name for name in CHECKSUMS if name in botocore.config.Config.OPTION_DEFAULTS]
    if not endpoint or is_aws(str(endpoint)):
        return {}
    return {name: "when_required" for name in known if f"AWS_{name.upper()}" not in os.environ and name not in scoped}


def is_aws(endpoint: str) -> bool:
    """Whether an endpoint belongs to AWS.

    >>> is_aws("https://s3.eu-west-1.amazonaws.com"), is_aws("http://amazonaws.com.example.org:9000")
    (True, False)
    """
    return (urlsplit(endpoint).hostname or "").endswith(AWS_DOMAINS)


def code_of(error: BaseException) -> str:
    """S3's error code behind an error of s3fs; empty if it has none."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
