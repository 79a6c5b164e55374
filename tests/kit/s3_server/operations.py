"""S3's operations, and the routing of requests to them."""

from __future__ import annotations

import base64
import binascii
import itertools
import time
from bisect import bisect_left
from urllib.parse import quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.kit.s3_server.protocol import (
    Operation,
    Request,
    Response,
    S3Error,
    failed,
    http_date,
    iso_date,
    parse_range,
    xml,
)
from tests.kit.s3_server.series import Listing
from tests.kit.s3_server.store import Bucket, Memory, Part, StoredObject, Upload, md5

MIN_PART = 5 * 1024 * 1024

KEPT_HEADERS = ("content-type", "content-encoding", "cache-control", "content-disposition", "content-language")


def kept_headers(request: Request) -> dict[str, str]:
    found = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}
    return {**{name: request.headers[name] for name in KEPT_HEADERS if request.header(name)}, **found}


def object_headers(stored: StoredObject) -> str:
    more = "".join(f"{name}: {value}\r\n" for name, value in stored.headers.items()) if stored.headers else ""
    kind = "" if "content-type" in stored.headers else "Content-Type: binary/octet-stream\r\n"
    date = http_date(int(stored.modified))
    return f'ETag: "{stored.etag}"\r\nLast-Modified: {date}\r\nAccept-Ranges: bytes\r\n{kind}{more}'


def etags(value: str) -> list[str]:
    return [etag.strip().removeprefix("W/").strip('"') for etag in value.split(",")]


def texts(body: bytes, record: str, *names: str) -> list[tuple[str, ...]]:
    """The named children of each `record` element, whatever their namespace."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise S3Error(400, "MalformedXML", "The XML you provided was not well-formed.") from error
    found = root.findall(f"{{*}}{record}")
    return [tuple(item.findtext(f"{{*}}{name}") or "" for name in names) for item in found]


def after(prefix: str) -> str:
    """The smallest string greater than all strings with this prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def page(bucket: Bucket, prefix: str, delimiter: str, start: str, limit: int) -> tuple[list[str], list[str], str]:
    """Keys, common prefixes, and the start of the next page ("" after the last page)."""
    keys, found, folders = bucket.keys, list[str](), list[str]()
    at = bisect_left(keys, max(prefix, start))
    while at < len(keys) and keys[at].startswith(prefix):
        if len(found) + len(folders) == limit:
            return found, folders, keys[at]
        key = keys[at]
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        if end < 0:
            found.append(key)
            at += 1
        else:
            folders.append(key[: end + len(delimiter)])
            at = bisect_left(keys, after(folders[-1]), at)
    return found, folders, ""


class S3:
    """The operations: each is a method that answers a request or raises S3Error."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.listings: dict[str, Listing] = {}  # Of buckets whose objects are only listed.
        self.upload_ids = itertools.count(1)

    def bucket(self, request: Request) -> Bucket:
        if bucket := self.buckets.get(request.bucket):
            return bucket
        raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")

    def find(self, bucket: Bucket, key: str) -> StoredObject:
        if stored := bucket.objects.get(key):
            return stored
        raise S3Error(404, "NoSuchKey", "The specified key does not exist.")

    def upload(self, request: Request) -> Upload:
        found = self.bucket(request).uploads.get(request.query["uploadId"])
        if found is None or found.key != request.key:
            raise S3Error(404, "NoSuchUpload", "The specified upload does not exist, or was completed or aborted.")
        return found

    def list_buckets(self, _: Request) -> Response:
        date = iso_date(0)
        rows = (f"<Bucket><Name>{n}</Name><CreationDate>{date}</CreationDate></Bucket>" for n in sorted(self.buckets))
        return xml("ListAllMyBucketsResult", f"<Owner><ID>owner</ID></Owner><Buckets>{''.join(rows)}</Buckets>")

    def create_bucket(self, request: Request) -> Response:
        self.buckets.setdefault(request.bucket, Bucket())
        return Response(200, f"Location: /{request.bucket}\r\n")

    def head_bucket(self, request: Request) -> Response:
        self.bucket(request)
        return Response(200, "x-amz-bucket-region: us-east-1\r\n")

    def delete_bucket(self, request: Request) -> Response:
        if self.bucket(request).objects:
            raise S3Error(409, "BucketNotEmpty", "The bucket you tried to delete is not empty")
        del self.buckets[request.bucket]
        return Response(204)

    def get_bucket_location(self, request: Request) -> Response:
        self.bucket(request)
        return xml("LocationConstraint", "")

    def get_bucket_versioning(self, request: Request) -> Response:
        self.bucket(request)
        return xml("VersioningConfiguration", "")

    def list_objects_v2(self, request: Request) -> Response:
        bucket, query = self.bucket(request), request.query
        if listing := self.listings.get(request.bucket):
            return listing.page(request)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        token, begin = query.get("continuation-token", ""), query.get("start-after", "")
        limit = min(1000, int(query.get("max-keys", 1000)))
        start = f"{begin}\0" if begin else ""
        if token:
            try:
                start = base64.urlsafe_b64decode(token).decode()
            except (binascii.Error, UnicodeDecodeError) as error:
                raise S3Error(400, "InvalidArgument", "The continuation token provided is incorrect") from error
        keys, folders, following = page(bucket, prefix, delimiter, start, limit) if limit else ([], [], "")
        url = query.get("encoding-type") == "url"

        def text(value: str) -> str:
            return quote(value) if url else escape(value)

        fields = {
            "Name": request.bucket,
            "Prefix": text(prefix),
            "StartAfter": text(begin),
            "ContinuationToken": token,
            "NextContinuationToken": base64.urlsafe_b64encode(following.encode()).decode(),
            "KeyCount": str(len(keys) + len(folders)),
            "MaxKeys": str(limit),
            "Delimiter": text(delimiter),
            "IsTruncated": "true" if following else "false",
            "EncodingType": "url" if url else "",
        }
        rows = [f"<{name}>{value}</{name}>" for name, value in fields.items() if value or name == "Prefix"]
        for key in keys:
            stored = bucket.objects[key]
            rows.append(
                f"<Contents><Key>{text(key)}</Key><LastModified>{iso_date(int(stored.modified))}</LastModified>"
                f"<ETag>&quot;{stored.etag}&quot;</ETag><Size>{stored.content.size}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        rows += [f"<CommonPrefixes><Prefix>{text(folder)}</Prefix></CommonPrefixes>" for folder in folders]
        return xml("ListBucketResult", "".join(rows))

    def get_object(self, request: Request) -> Response:
        stored = self.find(self.bucket(request), request.key)
        headers = request.headers
        if "if-match" in headers and not {"*", stored.etag} & set(etags(headers["if-match"])):
            raise failed("If-Match")
        if "if-none-match" in headers and {"*", stored.etag} & set(etags(headers["if-none-match"])):
            return Response(304, f'ETag: "{stored.etag}"\r\n')
        size = stored.content.size
        wanted = parse_range(headers["range"], size) if "range" in headers else None
        if wanted is None:
            return Response(200, object_headers(stored), stored.content, 0, size)
        start, stop = wanted
        more = f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        return Response(206, object_headers(stored) + more, stored.content, start, stop)

    def put_object(self, request: Request) -> Response:
        bucket = self.bucket(request)
        request.decode_body()
        stored = StoredObject(Memory(request.body), md5(request.body), kept_headers(request), time.time())
        self.commit(bucket, request, stored)
        return Response(200, f'ETag: "{stored.etag}"\r\n')

    def commit(self, bucket: Bucket, request: Request, stored: StoredObject) -> None:
        if "if-match" in request.headers:
            self.check_match(bucket, request)
        if request.header("if-none-match") == "*" and request.key in bucket.objects:
            raise failed("If-None-Match")
        bucket.put(request.key, stored)

    def check_match(self, bucket: Bucket, request: Request) -> None:
        if not {"*", self.find(bucket, request.key).etag} & set(etags(request.headers["if-match"])):
            raise failed("If-Match")

    def copy_object(self, request: Request) -> Response:
        name, _, key = unquote(request.headers["x-amz-copy-source"]).removeprefix("/").partition("/")
        if name not in self.buckets:
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
        source = self.find(self.buckets[name], key.partition("?versionId=")[0])
        headers = kept_headers(request) if request.header("x-amz-metadata-directive") == "REPLACE" else source.headers
        stored = StoredObject(source.content, source.etag, headers, time.time())
        self.commit(self.bucket(request), request, stored)
        date = iso_date(int(stored.modified))
        return xml("CopyObjectResult", f"<LastModified>{date}</LastModified><ETag>&quot;{stored.etag}&quot;</ETag>")

    def delete_object(self, request: Request) -> Response:
        bucket = self.bucket(request)
        if "if-match" in request.headers:
            self.check_match(bucket, request)
        bucket.delete(request.key)
        return Response(204)

    def delete_objects(self, request: Request) -> Response:
        bucket = self.bucket(request)
        request.decode_body()
        keys = [key for (key,) in texts(request.body, "Object", "Key")]
        for key in keys:
            bucket.delete(key)
        quiet = b"<Quiet>true</Quiet>" in request.body
        rows = (f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return xml("DeleteResult", "" if quiet else "".join(rows))

    def create_multipart_upload(self, request: Request) -> Response:
        name = f"upload-{next(self.upload_ids):08d}"
        self.bucket(request).uploads[name] = Upload(request.key, kept_headers(request), time.time())
        body = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key><UploadId>{name}</UploadId>"
        return xml("InitiateMultipartUploadResult", body)

    def upload_part(self, request: Request) -> Response:
        upload, number = self.upload(request), int(request.query["partNumber"])
        if not 1 <= number <= 10_000:
            raise S3Error(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        request.decode_body()
        part = Part(request.body, md5(request.body), time.time())
        upload.parts[number] = part
        return Response(200, f'ETag: "{part.etag}"\r\n')

    def complete_multipart_upload(self, request: Request) -> Response:
        upload = self.upload(request)
        chosen = [(int(n), etag.strip('"')) for n, etag in texts(request.body, "Part", "PartNumber", "ETag")]
        if not chosen:
            raise S3Error(400, "MalformedXML", "The XML you provided did not name a part.")
        if any(left >= right for (left, _), (right, _) in itertools.pairwise(chosen)):
            raise S3Error(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        if any(number not in upload.parts or upload.parts[number].etag != etag for number, etag in chosen):
            raise S3Error(400, "InvalidPart", "One or more of the specified parts could not be found.")
        parts = [upload.parts[number] for number, _ in chosen]
        if any(len(part.data) < MIN_PART for part in parts[:-1]):
            raise S3Error(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        etag = f"{md5(b''.join(bytes.fromhex(part.etag) for part in parts))}-{len(parts)}"
        content = Memory(b"".join(part.data for part in parts))
        self.commit(self.bucket(request), request, StoredObject(content, etag, upload.headers, time.time()))
        del self.bucket(request).uploads[request.query["uploadId"]]
        body = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key><ETag>&quot;{etag}&quot;</ETag>"
        return xml("CompleteMultipartUploadResult", body)

    def abort_multipart_upload(self, request: Request) -> Response:
        self.upload(request)
        del self.bucket(request).uploads[request.query["uploadId"]]
        return Response(204)

    def list_multipart_uploads(self, request: Request) -> Response:
        prefix = request.query.get("prefix", "")
        uploads = sorted(self.bucket(request).uploads.items(), key=lambda item: (item[1].key, item[0]))
        rows = (
            f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{name}</UploadId>"
            f"<Initiated>{iso_date(int(upload.started))}</Initiated></Upload>"
            for name, upload in uploads
            if upload.key.startswith(prefix)
        )
        body = f"<Bucket>{request.bucket}</Bucket><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
        return xml("ListMultipartUploadsResult", body + "".join(rows))

    def list_parts(self, request: Request) -> Response:
        rows = (
            f"<Part><PartNumber>{number}</PartNumber><LastModified>{iso_date(int(part.modified))}</LastModified>"
            f"<ETag>&quot;{part.etag}&quot;</ETag><Size>{len(part.data)}</Size></Part>"
            for number, part in sorted(self.upload(request).parts.items())
        )
        body = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key><IsTruncated>false</IsTruncated>"
        return xml("ListPartsResult", body + f"<UploadId>{request.query['uploadId']}</UploadId>" + "".join(rows))


#: (method, level of the path) -> (query parameter that selects the operation, kind, operation).
OPERATIONS: dict[tuple[str, str], tuple[tuple[str, str, Operation], ...]] = {
    ("GET", "service"): (("", "ListBuckets", S3.list_buckets),),
    ("PUT", "bucket"): (("", "CreateBucket", S3.create_bucket),),
    ("HEAD", "bucket"): (("", "HeadBucket", S3.head_bucket),),
    ("DELETE", "bucket"): (("", "DeleteBucket", S3.delete_bucket),),
    ("POST", "bucket"): (("delete", "DeleteObjects", S3.delete_objects),),
    ("GET", "bucket"): (
        ("list-type", "ListObjectsV2", S3.list_objects_v2),
        ("uploads", "ListMultipartUploads", S3.list_multipart_uploads),
        ("location", "GetBucketLocation", S3.get_bucket_location),
        ("versioning", "GetBucketVersioning", S3.get_bucket_versioning),
    ),
    ("HEAD", "object"): (("", "HeadObject", S3.get_object),),
    ("GET", "object"): (("uploadId", "ListParts", S3.list_parts), ("", "GetObject", S3.get_object)),
    ("PUT", "object"): (("partNumber", "UploadPart", S3.upload_part), ("", "PutObject", S3.put_object)),
    ("POST", "object"): (
        ("uploads", "CreateMultipartUpload", S3.create_multipart_upload),
        ("uploadId", "CompleteMultipartUpload", S3.complete_multipart_upload),
    ),
    ("DELETE", "object"): (
        ("uploadId", "AbortMultipartUpload", S3.abort_multipart_upload),
        ("", "DeleteObject", S3.delete_object),
    ),
}
#: Query parameters that address a subresource which this server does not implement.
UNSUPPORTED = {"acl", "attributes", "cors", "lifecycle", "policy", "retention", "tagging", "versions"}


def route(request: Request) -> tuple[str, Operation | None]:
    """The kind of a request, and its operation; None if this server does not implement it."""
    if "x-amz-copy-source" in request.headers:
        return ("UploadPartCopy", None) if "partNumber" in request.query else ("CopyObject", S3.copy_object)
    level = "object" if request.key else "bucket" if request.bucket else "service"
    if not UNSUPPORTED.isdisjoint(request.query):
        return "Unsupported", None
    for selector, kind, operation in OPERATIONS.get((request.method, level), ()):
        if not selector or selector in request.query:
            return kind, operation
    return "Unsupported", None
