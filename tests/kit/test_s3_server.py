"""The S3 server of the load and fault tests: it answers as moto does, and its faults do what they say."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

import obstore
import pytest
import s3fs
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import get_session
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from tests.kit.s3_server import Faults, Pacer, Request, S3Server, Settings, SlidingPeak, TokenBucket, Virtual, running

PART = 5 * 1024 * 1024
ODD_KEYS = ["a b", "a+b", "a%20b", "ü/ö", "<&>\"'", "x=y&z", "d//e", "dots..", "~tilde", "日本/語", "q?r#s"]


@pytest.fixture(scope="module")
def shared() -> Iterator[S3Server]:
    with running("--virtual", "virtual/small/:40:1000", "--virtual", "virtual/large/:1:256M") as server:
        yield server


@pytest.fixture
def server(shared: S3Server) -> S3Server:
    """The module's server without faults, with its counts at zero and an empty bucket `data`."""
    shared.set_faults()
    files = s3fs.S3FileSystem(endpoint_url=shared.endpoint, key="key", secret="secret", skip_instance_cache=True)
    if files.exists("data"):
        files.rm("data", recursive=True)
    files.mkdir("data")
    shared.reset()
    return shared


@pytest.fixture(params=["moto", "s3_server"])
def endpoint(request: pytest.FixtureRequest) -> str:
    """Either server: what a test expects of ours, the reference must do too."""
    if request.param == "moto":
        return str(request.getfixturevalue("s3_server"))
    found: S3Server = request.getfixturevalue("server")
    return found.endpoint


def boto(endpoint: str) -> Any:
    return get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


def object_store(endpoint: str, bucket: str) -> S3Store:
    return S3Store(
        bucket,
        endpoint=endpoint,
        access_key_id="key",
        secret_access_key="secret",
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


# ---- The protocol ----

#: What of an answer must be the same on both servers; ids and dates cannot be.
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
    """Calls a client and writes down what the server said."""

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


# ---- The wire ----


class Wire:
    """Requests as bytes on one connection of our own."""

    def __init__(self, server: S3Server) -> None:
        self.address = (urlsplit(server.endpoint).hostname, urlsplit(server.endpoint).port)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(self.address)
        return connection

    def ask(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body; headers with _ for -."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)  # type: ignore[arg-type]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, quote(path, safe="/?&="), body, named, encode_chunked=True)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def outcome(self, method: str, path: str, body: bytes | None = None) -> str:
        """What a client without any retries sees."""
        try:
            return str(self.ask(method, path, body)[0])
        except http.client.IncompleteRead:
            return "truncated"
        except ConnectionError:
            return "reset"


@pytest.fixture
def wire(server: S3Server) -> Wire:
    return Wire(server)


def test_requests_may_come_in_any_pieces_and_many_at_once(wire: Wire, server: S3Server) -> None:
    paths = [f"/virtual/small/{index:08d}" for index in range(40)]
    stream = b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths)
    whole = [wire.ask("GET", path)[1] for path in paths]
    assert len({*whole}) == 40
    for size in (len(stream), 7):
        with wire.connect() as connection, connection.makefile("rb") as answers:
            for at in range(0, len(stream), size):
                connection.sendall(stream[at : at + size])
            for expected in whole:
                while (line := answers.readline()) != b"\r\n":
                    assert line
                assert answers.read(1000) == expected
    assert server.stats()["requests"] == {"GetObject": 120}


@pytest.mark.parametrize("pieces", [1, 1000])
def test_chunked_and_signed_bodies_are_decoded(pieces: int, wire: Wire) -> None:
    data = b"0123456789" * 100
    checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    trailer = f"x-amz-checksum-crc32:{checksum}\r\n"
    signed = b"300;chunk-signature=" + b"a" * 64 + b"\r\n" + data[:768] + b"\r\ne8\r\n" + data[768:] + b"\r\n0\r\n"
    body = signed + trailer.encode() + b"\r\n"
    headers = {"x_amz_content_sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "Content_Encoding": "aws-chunked,gzip"}
    step = len(body) // pieces + 1
    chunks = (body[at : at + step] for at in range(0, len(body), step))
    assert wire.ask("PUT", "/data/chunked", chunks, Transfer_Encoding="chunked", **headers)[0] == 200
    assert wire.ask("PUT", "/data/whole", body, **headers)[0] == 200
    assert wire.ask("GET", "/data/chunked")[1] == wire.ask("GET", "/data/whole")[1] == data
    wrong = body.replace(b"0123", b"0124", 1)
    assert b"<Code>BadDigest</Code>" in wire.ask("PUT", "/data/wrong", wrong, **headers)[1]
    assert b"<Code>IncompleteBody</Code>" in wire.ask("PUT", "/data/wrong", body[:-9], **headers)[1]
    assert wire.ask("HEAD", "/data/wrong")[0] == 404


def test_a_body_that_is_not_what_its_md5_says_is_refused(wire: Wire) -> None:
    right = base64.b64encode(hashlib.md5(b"data").digest()).decode()
    assert wire.ask("PUT", "/data/k", b"data", Content_MD5=right)[0] == 200
    status, body = wire.ask("PUT", "/data/k", b"else", Content_MD5=right)
    assert (status, b"<Code>BadDigest</Code>" in body) == (400, True)
    assert wire.ask("GET", "/data/k")[1] == b"data"


def test_parts_out_of_order_are_refused(server: S3Server) -> None:
    client = boto(server.endpoint)
    upload = client.create_multipart_upload(Bucket="data", Key="k")["UploadId"]
    about = {"Bucket": "data", "Key": "k", "UploadId": upload}
    parts = [
        {"PartNumber": number, "ETag": client.upload_part(PartNumber=number, Body=b"x", **about)["ETag"]}
        for number in (2, 1)
    ]
    with pytest.raises(ClientError, match="InvalidPartOrder"):
        client.complete_multipart_upload(MultipartUpload={"Parts": parts}, **about)


def test_what_it_does_not_do_it_refuses(wire: Wire) -> None:
    for method, path in (("GET", "/data?acl"), ("GET", "/data/k?tagging"), ("GET", "/data"), ("POST", "/data/k")):
        status, body = wire.ask(method, path)
        assert (status, b"<Code>NotImplemented</Code>" in body) == (501, True)
    assert wire.ask("GET", "/data?list-type=2&max-keys=x")[0] == 400
    assert wire.ask("PUT", "/data/k?partNumber=1", b"x")[0] == 400
    with wire.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


# ---- Contents without memory ----


def test_virtual_data_follows_from_key_and_offset(wire: Wire, server: S3Server) -> None:
    server.add_virtual("virtual", "more/", 2, 3_000_000)
    one, other = (wire.ask("GET", f"/virtual/more/{index:08d}")[1] for index in range(2))
    assert len(one) == len(other) == 3_000_000
    assert one != other
    for start, stop in ((0, 1), (1_048_500, 1_048_700), (1_000_000, 2_500_000), (2_999_999, 3_000_000)):
        part = wire.ask("GET", "/virtual/more/00000000", Range=f"bytes={start}-{stop - 1}")
        assert part == (206, one[start:stop])
    assert bytes(Virtual("more/00000000", 3_000_000).read(0, 3_000_000)) == one
    assert one[: 1 << 20] != one[1 << 20 : 2 << 20]


def test_a_folder_is_served(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "empty").touch()
    with running("--serve", f"files={tmp_path}") as server:
        store = object_store(server.endpoint, "files")
        assert [item["path"] for item in obstore.list(store).collect()] == ["empty", "sub/file"]
        assert obstore.get(store, "sub/file").bytes() == (tmp_path / "sub" / "file").read_bytes()
        assert obstore.get(store, "empty").bytes() == b""


def test_a_slow_reader_costs_no_memory(wire: Wire, server: S3Server) -> None:
    request = b"GET /virtual/large/00000000 HTTP/1.1\r\nHost: x\r\n\r\n"
    before = server.stats()["peak_memory"]
    readers = [wire.connect(receive_buffer=65536) for _ in range(8)]
    for reader in readers:
        reader.sendall(request * 3)
        assert reader.recv(15, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK"
    stats = server.stats()
    assert stats["bytes_out"] < 8 * 2**28 / 4
    assert stats["peak_memory"] - before < 16 * 2**20
    rest, content = bytearray(2**20), Virtual("large/00000000", 2**28)
    while not (head := readers[0].recv(1)).endswith(b"\n") or readers[0].recv(2, socket.MSG_PEEK) != b"\r\n":
        assert head
    readers[0].recv(2)
    for at in range(0, 16 * 2**20, len(rest)):
        readers[0].recv_into(rest, flags=socket.MSG_WAITALL)
        assert bytes(rest) == content.read(at, at + len(rest))
    for reader in readers:
        reader.close()


# ---- Faults ----

PATHS = [f"/virtual/small/{index:08d}" for index in range(40)]


def test_every_fault_of_reads_is_counted_and_comes_again(wire: Wire, server: S3Server) -> None:
    settings = {"p_503": 0.1, "p_500": 0.1, "p_reset": 0.2, "p_truncate": 0.15}
    server.set_faults(seed=1, **settings)
    seen = [wire.outcome("GET", path) for _ in range(5) for path in PATHS]
    counts, faults = Counter(seen), server.stats()["faults"]
    assert {*counts} == {"200", "503", "500", "reset", "truncated"}
    assert (counts["503"], counts["500"], counts["truncated"]) == (faults["503"], faults["500"], faults["truncate"])
    assert counts["reset"] == faults["reset_before"] + faults["reset_body"]
    assert min(faults.values()) >= 5
    server.reset()
    with ThreadPoolExecutor(8) as pool:  # whatever the order in which they arrive
        again = [result for _ in range(5) for result in pool.map(lambda path: wire.outcome("GET", path), PATHS)]
    assert again == seen
    assert server.stats()["faults"] == faults
    server.set_faults(seed=2, **settings)
    assert [wire.outcome("GET", path) for _ in range(5) for path in PATHS] != seen


def test_a_truncated_body_has_its_full_length_announced(wire: Wire, server: S3Server) -> None:
    server.set_faults(p_truncate=1)
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire.ask("GET", PATHS[0])
    assert caught.value.partial == bytes(Virtual("small/00000000", 1000).read(0, 500))
    assert caught.value.expected == 500
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire.ask("GET", "/virtual/large/00000000")
    assert (len(caught.value.partial), caught.value.expected) == (2**27, 2**27)
    assert wire.outcome("HEAD", PATHS[0]) == "200"


def test_a_broken_upload_has_happened_or_not(wire: Wire, server: S3Server) -> None:
    server.set_faults(p_reset_put=0.6)
    injected: Counter[str] = Counter()
    for size in (0, 10, 100_000):
        for index in range(20):
            key = f"/data/{size}-{index}"
            server.reset()
            seen, faults = wire.outcome("PUT", key, b"x" * size), server.stats()["faults"]
            injected.update(faults)
            assert seen == ("reset" if faults else "200")
            assert wire.outcome("GET", key) == ("404" if "put_cut" in faults else "200")
    assert injected.keys() == {"put_cut", "put_lost"}
    assert 20 < injected.total() < 50
    assert min(injected.values()) >= 10


def test_clients_that_retry_get_through(server: S3Server) -> None:
    data = bytes(range(256)) * (2 * PART // 256 + 1)
    server.set_faults(p_503=0.1, p_500=0.1, p_reset=0.1, p_truncate=0.1, p_reset_put=0.2, seed=3)
    files = object_store(server.endpoint, "data")
    for index in range(10):
        obstore.put(files, f"k{index}", data[: index * 1000])
        assert obstore.get(files, f"k{index}").bytes() == data[: index * 1000]
    assert sum(server.stats()["faults"].values()) >= 5


def test_the_token_bucket_refuses_what_is_beyond_the_burst(wire: Wire, server: S3Server) -> None:
    server.set_faults(rate=1e-6, burst=5)
    assert [wire.outcome("GET", path) for path in PATHS[:8]] == ["200"] * 5 + ["503"] * 3
    assert b"<Code>SlowDown</Code>" in wire.ask("GET", PATHS[0])[1]
    assert server.stats()["faults"] == {"rate": 4}
    server.reset()
    assert wire.outcome("GET", PATHS[0]) == "200"


def test_a_token_bucket_fills_at_its_rate() -> None:
    tokens = TokenBucket(rate=10, burst=3, at=0.0)
    assert [tokens.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [tokens.take(0.1), tokens.take(0.1), tokens.take(0.25), tokens.take(0.25)] == [True, False, True, False]
    assert [tokens.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_faults_only_where_they_are_wanted(wire: Wire, server: S3Server) -> None:
    server.set_faults(p_503=1, only=["PUT", "HeadObject"], prefix="small/")
    asked = [("GET", PATHS[0]), ("HEAD", PATHS[0]), ("PUT", PATHS[0]), ("PUT", "/data/k")]
    assert [wire.outcome(*request) for request in asked] == ["200", "503", "503", "200"]
    server.set_faults(deny="small/0000001")
    assert [wire.outcome("GET", path) for path in (PATHS[9], PATHS[10])] == ["200", "403"]
    assert wire.outcome("GET", "/virtual?list-type=2&prefix=small/0000001") == "403"
    server.set_faults(require_auth=True)
    assert b"<Code>AccessDenied</Code>" in wire.ask("GET", PATHS[0])[1]
    assert wire.ask("GET", PATHS[0], Authorization="AWS4-HMAC-SHA256 ...")[0] == 200
    assert server.stats()["requests"].keys() == {"GetObject", "HeadObject", "PutObject", "ListObjectsV2"}


def test_wrong_settings_are_refused_and_change_nothing(server: S3Server) -> None:
    server.set_faults(latency=0.01)
    for wrong in ({"p_504": 1}, {"p_503": 0.6, "p_reset": 0.6}, {"p_503": "much"}):
        with pytest.raises(HTTPError, match="400"):
            server.set_faults(**wrong)
    assert server.admin("GET", "faults")["latency"] == 0.01


def test_latency_and_bandwidth_take_their_time(wire: Wire, server: S3Server) -> None:
    server.set_faults(latency=0.2)
    start = time.monotonic()
    wire.ask("GET", PATHS[0])
    assert time.monotonic() - start >= 0.2
    server.set_faults(bandwidth=20e6)
    start = time.monotonic()
    wire.ask("GET", "/virtual/large/00000000", Range="bytes=0-7999999")
    assert time.monotonic() - start >= 0.9 * 8 / 20
    start = time.monotonic()
    wire.ask("PUT", "/data/k", bytes(8_000_000))
    assert time.monotonic() - start >= 0.9 * 8 / 20


def test_jitter_is_between_none_and_all_of_it() -> None:
    faults = Faults(Settings(latency=1, jitter=2), now=0.0)
    delays = [faults.plan(request(f"k{index}"), 0.0).latency for index in range(100)]
    assert 1 <= min(delays) < 1.2
    assert 2.8 < max(delays) < 3


def request(key: str) -> Request:
    made = Request(f"GET /data/{key} HTTP/1.1".encode())
    made.kind = "GetObject"
    return made


@pytest.mark.parametrize("rate", [90e6, 1000.0])
def test_pacing_keeps_the_rate_however_late_the_timers_are(rate: float) -> None:
    pacer, now, size = Pacer(rate, now=5.0), 5.0, int(rate * 2)
    while pacer.done < size:
        due = pacer.due(now)
        assert due <= (now - 5.0) * rate - pacer.done
        if due < pacer.slice:
            now += max(0.0, pacer.wait(pacer.slice, now)) + 0.003
        else:
            pacer.done += due
    assert size / (now - 5.0) == pytest.approx(rate, rel=0.03)


def test_a_paced_transfer_makes_up_for_little_that_the_client_lost() -> None:
    pacer = Pacer(1e6, now=0.0)
    assert pacer.due(100.0) == pytest.approx(Pacer.CREDIT_S * 1e6, abs=1)


# ---- Counts ----


def test_counts_and_log_tell_what_was_asked(wire: Wire, server: S3Server) -> None:
    wire.ask("PUT", "/data/a", b"12345")
    wire.ask("GET", "/data/a", Range="bytes=1-2")
    wire.ask("GET", "/data/b")
    wire.ask("GET", "/data?list-type=2&prefix=a")
    wire.ask("POST", "/data/c?uploads")
    stats = server.stats()
    kinds = ["PutObject", "GetObject", "GetObject", "ListObjectsV2", "CreateMultipartUpload"]
    assert stats["requests"] == Counter(kinds)
    assert stats["statuses"] == {"200": 3, "206": 1, "404": 1}
    assert stats["bytes_in"] == 5
    assert sum(stats["per_second"]) == 5
    assert 1 <= stats["peak_100ms"] <= stats["peak_1s"] <= 5
    assert stats["open_uploads"] == 1
    spans = ["", "bytes=1-2", "", "", ""]
    assert server.log() == [*zip(kinds, ["a", "a", "b", "a", "c"], spans, [200, 206, 404, 200, 200], strict=True)]
    server.reset()
    assert server.stats()["requests"] == {}
    assert server.log() == []


def test_a_peak_is_of_any_window() -> None:
    peak = SlidingPeak(1.0)
    for now in (0.0, 0.9, 1.5, 1.8, 1.89, 3.0):
        peak.add(now)
    assert peak.peak == 4


def test_the_log_holds_the_last_requests() -> None:
    with running("--log", 3, "--bucket", "data") as server:
        for index in range(5):
            Wire(server).ask("GET", f"/data/{index}")
        assert [key for _, key, _, _ in server.log()] == ["2", "3", "4"]
        assert json.dumps(server.stats()["requests"]) == '{"GetObject": 5}'
