"""The default S3 engine: s3fs and botocore, with all of s3fs's options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import s3fs
from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError
from fsspec.asyn import sync

from stagger.errors import StaggerError
from stagger.storage import Entry
from stagger.storage.faults import BrokenOff
from stagger.storage.s3.engine import CHUNK_BYTES, CONNECTIONS, PAGE_KEYS, Body, Changed, Page

#: Retries are off: stagger retries, and the attempts of two retrying layers would multiply.
CONFIG = {"max_pool_connections": CONNECTIONS, "connect_timeout": 10, "read_timeout": 60}
RETRIES = {"total_max_attempts": 1, "mode": "standard"}

#: Error codes for an object that is not there. A missing bucket or upload has another code.
GONE = ("NoSuchKey", "404")


class S3fsEngine:
    """An `Engine` over s3fs's `call_s3`: s3fs finds credentials, endpoints and settings as usual."""

    def __init__(self, options: dict[str, Any]) -> None:
        try:
            config = {**CONFIG, **options.get("config_kwargs", {}), "retries": RETRIES}
            self._files = s3fs.S3FileSystem(
                **{**options, "config_kwargs": config}, use_listings_cache=False, skip_instance_cache=True
            )
            self._files.retries = 1
            with contextlib.suppress(NoCredentialsError, PartialCredentialsError):  # The first request reports them.
                self._files.connect()  # Sends no request, but reveals wrong options.
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
        return Body(answer["ETag"], self._chunks(answer["Body"], answer["ContentLength"]))

    def _chunks(self, body: Any, length: int) -> Iterator[bytes]:
        broken: list[Exception] = []

        async def gather() -> bytes:
            pieces: list[bytes] = []
            size = 0
            try:
                while size < CHUNK_BYTES and (piece := await body.read(CHUNK_BYTES - size)):
                    pieces.append(piece)
                    size += len(piece)
            except Exception as error:
                broken.append(error)  # Keep the bytes that have arrived.
            return b"".join(pieces)

        try:
            # Read on until an empty read after the last byte: only then botocore verifies the checksum, if any.
            while chunk := cast("bytes", sync(self._files.loop, gather)):
                length -= len(chunk)
                yield chunk
                if broken:
                    break
            if broken:
                raise broken[0]
            if length > 0:
                raise BrokenOff(f"{length} bytes are missing")
        finally:
            self._files.loop.call_soon_threadsafe(body.close)

    def put(self, bucket: str, key: str, data: bytes, *, create: bool = False, match: str = "") -> str:
        with conditional(key, create=create, match=match) as condition:
            return etag_in(self._call("put_object", Bucket=bucket, Key=key, Body=data, **condition))

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
        return Entry(key, answer["ContentLength"], answer["ETag"])

    def page(self, bucket: str, prefix: str, *, recursive: bool, more: str) -> Page:
        request = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS}
        if not recursive:
            request["Delimiter"] = "/"
        if more:
            request["ContinuationToken"] = more
        answer = self._call("list_objects_v2", **request)
        entries = [Entry(item["Key"], item["Size"], item.get("ETag", "")) for item in answer.get("Contents", ())]
        return Page(entries, answer.get("NextContinuationToken", "") if answer.get("IsTruncated") else "")

    def has_bucket(self, bucket: str) -> bool:
        try:
            self._call("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except FileNotFoundError:
            return False
        return True

    def begin_upload(self, bucket: str, key: str) -> str:
        return cast("str", self._call("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"])

    def put_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        part = {"UploadId": upload, "PartNumber": number, "Body": data}
        return cast("str", self._call("upload_part", Bucket=bucket, Key=key, **part)["ETag"])

    def complete_upload(
        self, bucket: str, key: str, upload: str, parts: list[str], *, create: bool = False, match: str = ""
    ) -> str:
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(parts, 1)]
        request = {"UploadId": upload, "MultipartUpload": {"Parts": listed}}
        with conditional(key, create=create, match=match) as condition:
            answer = self._call("complete_multipart_upload", Bucket=bucket, Key=key, **request, **condition)
        return etag_in(answer)

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        self._call("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        more: dict[str, str] = {}
        while True:
            answer = self._call("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **more)
            found += [(item["Key"], item["UploadId"]) for item in answer.get("Uploads", ())]
            if not answer.get("IsTruncated"):
                return found
            more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}


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
    """The ETag of an answer; empty if it has none."""
    return str(answer.get("ETag", ""))


def code_of(error: BaseException) -> str:
    """S3's error code behind an error of s3fs; empty if it has none."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    """The HTTP status behind an error of s3fs; 0 if it has none."""
    response = getattr(error.__cause__, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
