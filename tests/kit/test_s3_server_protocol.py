"""The S3 server at byte level: which requests it accepts, and which it rejects."""

from __future__ import annotations

import base64
import hashlib
import socket
import zlib
from pathlib import Path

import obstore
import pytest
from botocore.exceptions import ClientError

from tests.kit.conftest import Wire
from tests.kit.s3_clients import boto, object_store
from tests.kit.s3_server import S3Server, running
from tests.kit.s3_server.store import Virtual


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
