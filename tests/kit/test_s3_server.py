"""The S3 server of the load and fault tests answers every client that stagger uses as moto does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
import s3fs
from botocore.exceptions import ClientError
from obstore.exceptions import AlreadyExistsError

from tests.kit.s3_clients import PART, boto, object_store
from tests.kit.s3_server import S3Server

ODD_KEYS = ["a b", "a+b", "a%20b", "ü/ö", "<&>\"'", "x=y&z", "d//e", "dots..", "~tilde", "日本/語", "q?r#s"]


@pytest.fixture(params=["moto", "s3_server"])
def endpoint(request: pytest.FixtureRequest) -> str:
    """moto's server, then ours: the reference must meet every expectation too."""
    if request.param == "moto":
        return str(request.getfixturevalue("s3_server"))
    found: S3Server = request.getfixturevalue("server")
    return found.endpoint


#: Fields of a response that must be equal on both servers; ids and dates cannot be.
TOLD = (
    *("AcceptRanges", "Bucket", "CommonPrefixes", "ContentEncoding", "ContentLength", "ContentRange", "ContentType"),
    *("Delimiter", "ETag", "IsTruncated", "Key", "KeyCount", "MaxKeys", "Metadata", "Name", "StartAfter"),
)
TOLD_OF_ITEMS = {
    "Contents": ("Key", "Size", "ETag", "StorageClass"),
    "Deleted": ("Key",),
    "Parts": ("PartNumber", "Size", "ETag"),
    "Uploads": ("Key",),
}


class Transcript:
    """Calls a client and records the server's responses."""

    def __init__(self, endpoint: str) -> None:
        self.client = boto(endpoint)
        self.lines: list[Any] = []

    def __call__(self, operation: str, **arguments: Any) -> Any:
        try:
            answer = getattr(self.client, operation)(Bucket="transcript", **arguments)
        except ClientError as error:
            status, said = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]
            self.lines.append((operation, arguments.get("Key"), status, said["Code"], said.get("Condition")))
            return None
        told = {"status": answer["ResponseMetadata"]["HTTPStatusCode"]}
        told |= {name: answer[name] for name in TOLD if name in answer}
        for name, fields in TOLD_OF_ITEMS.items():
            told[name] = [{field: item.get(field) for field in fields} for item in answer.get(name, [])]
        if operation == "get_object":
            told["Body"] = answer["Body"].read()
        self.lines.append((operation, arguments.get("Key"), told))
        return answer


def tell_of_objects(tell: Transcript) -> None:
    tell("put_object", Key="k", Body=b"0123456789")
    tell("create_bucket")
    tell("head_bucket")
    tell("put_object", Key="k", Body=b"0123456789", ContentType="text/plain", Metadata={"origin": "test"})
    tell("put_object", Key="z", Body=b"zipped", ContentEncoding="gzip")
    tell("put_object", Key="empty", Body=b"")
    for key in ("k", "z", "empty", "missing"):
        tell("head_object", Key=key)
        tell("get_object", Key=key)
    for span in ("0-0", "2-5", "7-", "-3", "5-99", "-99", "10-", "99-100", "5-2", "x"):
        tell("get_object", Key="k", Range=f"bytes={span}")
    etag = hashlib.md5(b"0123456789").hexdigest()
    for value in (etag, f'"{etag}"', "0" * 32):
        tell("get_object", Key="k", IfMatch=value)
        tell("get_object", Key="k", IfNoneMatch=value)
    tell("put_object", Key="k", Body=b"no", IfNoneMatch="*")
    tell("put_object", Key="k", Body=b"no", IfMatch="0" * 32)
    tell("put_object", Key="missing", Body=b"no", IfMatch=etag)
    tell("put_object", Key="new", Body=b"yes", IfNoneMatch="*")
    tell("put_object", Key="k", Body=b"second", IfMatch=etag)
    tell("get_object", Key="k")
    tell("copy_object", Key="copy", CopySource="transcript/z")
    tell("copy_object", Key="copy", CopySource="transcript/missing")
    tell("get_object", Key="copy")
    tell("delete_object", Key="copy")
    tell("delete_object", Key="copy")
    tell("delete_objects", Delete={"Objects": [{"Key": "z"}, {"Key": "empty"}]})
    tell("list_objects_v2")
    tell("delete_bucket")


def tell_of_listings(tell: Transcript) -> None:
    for key in (*ODD_KEYS, *(f"f/{i // 4}/{i}" for i in range(12))):
        tell("put_object", Key=key, Body=key.encode())
    tell("list_objects_v2")
    tell("list_objects_v2", EncodingType="url")
    for more in ({"Delimiter": "/"}, {"Prefix": "f/", "Delimiter": "/"}, {"Prefix": "f/1"}, {"Prefix": "none/"}):
        tell("list_objects_v2", **more)
    for more in ({}, {"Prefix": "f/"}, {"Prefix": "f/1"}, {"Prefix": "f/2/"}, {"Prefix": "f/1/5"}):
        tell("list_objects_v2", StartAfter="f/1/5", **more)
    for size in (1, 3, 5, 1000):
        for delimiter in ({}, {"Delimiter": "/"}):
            page = tell("list_objects_v2", MaxKeys=size, **delimiter)
            while page["IsTruncated"]:
                token = page["NextContinuationToken"]
                page = tell("list_objects_v2", MaxKeys=size, ContinuationToken=token, **delimiter)
    for key in ODD_KEYS:
        tell("get_object", Key=key)
    tell("delete_objects", Delete={"Objects": [{"Key": key} for key in ODD_KEYS]})
    tell("list_objects_v2", Delimiter="/")


def tell_of_uploads(tell: Transcript) -> None:
    def begin(key: str) -> dict[str, str]:
        return {"Key": key, "UploadId": tell("create_multipart_upload", Key=key)["UploadId"]}

    def complete(upload: dict[str, str], *parts: tuple[int, bytes]) -> None:
        listed = [{"PartNumber": number, "ETag": hashlib.md5(data).hexdigest()} for number, data in parts]
        tell("complete_multipart_upload", MultipartUpload={"Parts": listed}, **upload)

    first, second, last = b"1" * PART, b"2" * PART, b"end"
    upload = begin("m/whole")
    for number, data in ((3, last), (1, b"replaced"), (1, first), (2, second)):
        tell("upload_part", PartNumber=number, Body=data, **upload)
    tell("list_parts", **upload)
    tell("list_multipart_uploads", Prefix="m/")
    tell("list_multipart_uploads", Prefix="other/")
    tell("head_object", Key="m/whole")
    complete(upload, (1, first), (2, b"other"))
    complete(upload, (1, first), (2, second), (3, last))
    tell("head_object", Key="m/whole")
    tell("get_object", Key="m/whole", Range=f"bytes={2 * PART - 3}-")
    small = begin("m/small")
    for number in (1, 2):
        tell("upload_part", PartNumber=number, Body=last, **small)
    complete(small, (1, last), (2, last))
    for _ in range(2):
        tell("abort_multipart_upload", **small)
    tell("list_multipart_uploads")
    tell("list_objects_v2")


@pytest.mark.parametrize("script", [tell_of_objects, tell_of_listings, tell_of_uploads])
def test_says_what_moto_says(script: Callable[[Transcript], None], s3_server: str, server: S3Server) -> None:
    told = []
    for endpoint in (s3_server, server.endpoint):
        transcript = Transcript(endpoint)
        if script is not tell_of_objects:
            transcript("create_bucket")
        script(transcript)
        for item in transcript.client.list_objects_v2(Bucket="transcript").get("Contents", []):
            transcript.client.delete_object(Bucket="transcript", Key=item["Key"])
        transcript("delete_bucket")
        told.append(transcript.lines)
    for reference, ours in zip(*told, strict=True):
        assert ours == reference


def test_s3fs_works_with_it(endpoint: str, tmp_path: Path) -> None:
    files = s3fs.S3FileSystem(
        endpoint_url=endpoint, key="key", secret="secret", use_listings_cache=False, skip_instance_cache=True
    )
    files.mkdir("of-s3fs")
    data = bytes(range(256)) * (3 * PART // 256 + 1)
    with files.open("of-s3fs/a/large", "wb", block_size=PART) as file:
        file.write(data)
    for key in ODD_KEYS:
        files.pipe(f"of-s3fs/odd/{key}", key.encode())
    assert files.cat("of-s3fs/a/large") == data
    assert files.cat_file("of-s3fs/a/large", start=PART - 1, end=PART + 1) == data[PART - 1 : PART + 1]
    assert sorted(files.find("of-s3fs/odd")) == sorted(f"of-s3fs/odd/{key}" for key in ODD_KEYS)
    assert files.cat("of-s3fs/odd/日本/語") == "日本/語".encode()
    assert files.ls("of-s3fs", detail=False) == ["of-s3fs/a", "of-s3fs/odd"]
    assert files.info("of-s3fs/a/large")["size"] == len(data)
    assert not files.exists("of-s3fs/a/larg")
    files.copy("of-s3fs/a/large", "of-s3fs/b")
    files.get("of-s3fs/b", str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == data
    with pytest.raises(FileExistsError):
        files.pipe_file("of-s3fs/b", b"no", mode="create")
    with pytest.raises(FileNotFoundError):
        files.cat("of-s3fs/missing")
    files.rm("of-s3fs", recursive=True)
    assert not files.exists("of-s3fs")


def test_obstore_works_with_it(endpoint: str) -> None:
    boto(endpoint).create_bucket(Bucket="of-obstore")
    store = object_store(endpoint, "of-obstore")
    data = bytes(range(256)) * (2 * PART // 256 + 1)
    obstore.put(store, "a/large", data, use_multipart=True, chunk_size=PART)
    obstore.put(store, "a/ü b", b"odd")
    assert obstore.get(store, "a/large").bytes() == data
    assert obstore.get_range(store, "a/large", start=PART, end=PART + 3) == data[PART : PART + 3]
    ranges = obstore.get_ranges(store, "a/large", starts=[0, 2 * PART], ends=[5, 2 * PART + 5])
    assert [bytes(part) for part in ranges] == [data[:5], data[2 * PART : 2 * PART + 5]]
    assert obstore.head(store, "a/large")["size"] == len(data)
    assert [item["path"] for item in obstore.list(store).collect()] == ["a/large", "a/ü b"]
    assert obstore.list_with_delimiter(store)["common_prefixes"] == ["a"]
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a/large", b"no", mode="create")
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "missing")
    obstore.copy(store, "a/ü b", "c")
    obstore.delete(store, ["a/large", "a/ü b", "c"])
    assert obstore.list(store).collect() == []
