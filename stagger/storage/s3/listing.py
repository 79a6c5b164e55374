"""Reads the answer to ListObjectsV2 at a tenth of the CPU that botocore's parser takes."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from stagger.storage.faults import WrongAnswer

ROOT = "ListBucketResult"


def parse(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """botocore's event `before-parse`: put the parsed answer beside the body, and leave botocore an empty one.

    Anything that is not a well-formed listing is left to botocore.
    """
    if response_dict["status_code"] != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])  # noqa: S314 # The parser that botocore uses.
    except ElementTree.ParseError:
        return
    if root.tag.endswith(ROOT):
        customized_response_dict.update(read(root, root.tag.removesuffix(ROOT)))
        response_dict["body"] = f"<{ROOT}/>".encode()


def read(root: ElementTree.Element, space: str) -> dict[str, Any]:
    """The elements of a listing that the engine uses, named as botocore names them."""
    url = root.findtext(f"{space}EncodingType") == "url"
    name, size, etag = f"{space}Key", f"{space}Size", f"{space}ETag"
    contents: list[dict[str, Any]] = []
    for item in root.iterfind(f"{space}Contents"):
        key, length = item.findtext(name), item.findtext(size)
        if not key or length is None or not length.isdecimal():
            raise WrongAnswer(f"the listing has an object without a key or a size ({key!r}, {length!r})")
        contents.append(
            {"Key": unquote_plus(key) if url else key, "Size": int(length), "ETag": item.findtext(etag) or ""}
        )
    truncated = root.findtext(f"{space}IsTruncated") or ""
    return {
        "Contents": contents,
        "CommonPrefixes": root.findall(f"{space}CommonPrefixes"),
        "IsTruncated": truncated.strip().lower() == "true",
        "NextContinuationToken": root.findtext(f"{space}NextContinuationToken") or "",
    }
