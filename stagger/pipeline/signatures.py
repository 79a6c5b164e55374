"""What a file is, by its first bytes: for errors about files that are not what their names claim."""

from __future__ import annotations

import codecs
import re

#: Leading bytes -> what the file is, and what to do with it. No text begins with them.
SIGNATURES: dict[bytes, str] = {
    b"\x1f\x8b": "gzip: set compression: gzip",
    b"\x28\xb5\x2f\xfd": "zstd: set compression: zstd",
    **{b"BZh%d1AY&SY" % level: "bz2: set compression: bz2" for level in range(1, 10)},
    b"\xfd7zXZ\0": "xz: set compression: xz",
    b"\x5d\0\0": "LZMA: set compression: xz",
    b"\x37\xa4\x30\xec": "a zstd dictionary, not data: leave it out of the input by glob",
    b"\x04\x22\x4d\x18": "LZ4, which is not supported: compress it with zstd or gzip instead",
    b"\xff\x06\0\0sNaPpY": "Snappy, which is not supported: compress it with zstd or gzip instead",
    b"LZIP\x01": "lzip, which is not supported: compress it with zstd or gzip instead",
    b"\x1f\x9d": "compressed by compress (.Z), which is not supported: compress it with zstd or gzip instead",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"PK\x05\x06": "a zip archive without files: leave it out of the input by glob",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!\x1a\x07": "a RAR archive: unpack it first",
    b"%PDF-": "a PDF document: extract its text first",
    b"PAR1\x15": "a Parquet file: read it with read_parquet",
    b"ARROW1\0\0": "an Arrow file: convert it to Parquet",
    b"Obj\x01": "an Avro file: convert it to Parquet or JSON Lines",
    b"SQLite format 3\0": "an SQLite database: export its rows first",
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file itself: run `git lfs pull`",
}

#: A frame of zstd to skip: zstd files may begin with one.
_SKIPPED_FRAME = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")

#: Byte order mark -> encoding. The marks of UTF-32 come first: those of UTF-16 are their prefixes.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32LE",
    codecs.BOM_UTF32_BE: "UTF-32BE",
    codecs.BOM_UTF16_LE: "UTF-16LE",
    codecs.BOM_UTF16_BE: "UTF-16BE",
}

#: Encoding -> its first two characters, neither of them a NUL.
_WIDE = {
    "UTF-32LE": re.compile(rb"(?:[^\0].[\0-\x10]\0){2}", re.DOTALL),
    "UTF-32BE": re.compile(rb"(?:\0[\0-\x10].[^\0]){2}", re.DOTALL),
    "UTF-16LE": re.compile(rb"(?:[^\0]\0){2}"),
    "UTF-16BE": re.compile(rb"(?:\0[^\0]){2}"),
}

#: Bytes of a header of tar, and its checksum: its place, and its form.
_TAR_HEADER = 512
_SUM = slice(148, 156)
_OCTAL = re.compile(rb"[ \0]*([0-7]+)[ \0]+")


def recognized(head: bytes) -> str:
    """What a file with these first bytes is, and what to do with it; empty if it may be text in UTF-8."""
    if is_tar(head):
        return "a tar archive: unpack it first"
    if encoding := encoding_of(head):
        return f"text in {encoding}: convert it to UTF-8, for example with `iconv -f {encoding} -t UTF-8`"
    if _SKIPPED_FRAME.match(head):
        return SIGNATURES[b"\x28\xb5\x2f\xfd"]
    return next((what for magic, what in SIGNATURES.items() if head.startswith(magic)), "")


def described(head: bytes) -> str:
    """What a file with these first bytes is, in any case."""
    if what := recognized(head):
        return what
    if head.lstrip()[:1] == b"<":
        return f"HTML or XML, perhaps a server's error page: it begins with {head.lstrip()[:40]!r}"
    return f"something else: it begins with {head[:20]!r}"


def is_tar(head: bytes) -> bool:
    """Whether a file begins with a header of tar: these have a checksum, and most a magic."""
    if head[257:262] == b"ustar":
        return True
    header = head[:_TAR_HEADER]
    stored = _OCTAL.fullmatch(header[_SUM])
    if len(header) < _TAR_HEADER or stored is None:
        return False
    return int(stored[1], 8) == sum(header) - sum(header[_SUM]) + len(header[_SUM]) * ord(" ")


def encoding_of(head: bytes) -> str:
    """The encoding of text in UTF-16 or UTF-32; empty for others.

    Without a byte order mark, it shows by the NUL bytes of the first two characters, or of the line ends.
    """
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" not in head:
        return ""
    for encoding, start in _WIDE.items():
        if start.match(head):
            return encoding
    for encoding, nul in (("UTF-16LE", 1), ("UTF-16BE", 0)):
        if not head[1 - nul :: 2].count(b"\0") and has_wide_lines(head, nul):
            return encoding
    return ""


def has_wide_lines(head: bytes, nul: int) -> bool:
    """Whether two or more lines end with a line end of two bytes, whose NUL stands at an offset of this parity."""
    newline = b"\n\0" if nul else b"\0\n"
    pairs = [head[start : start + 2] for start in range(0, len(head) - 1, 2)]
    return pairs.count(newline) >= 2
