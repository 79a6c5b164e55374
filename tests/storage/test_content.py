"""Checksums of outputs: what a writer computes is what a reader of the file finds."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from stagger.storage import FEW_BYTES, ONE_PUT_BYTES, Crc, Entry
from stagger.storage.content import digest_of, is_intact
from stagger.storage.storage import Storage
from tests.conftest import Bucket


def test_the_crc_is_the_same_before_and_after_the_import_of_isal() -> None:
    data = os.urandom(FEW_BYTES + 100_000)
    crc = Crc()
    for start in range(0, len(data), 65_536):
        crc.add(data[start : start + 65_536])
    assert str(crc) == f"crc32:{zlib.crc32(data):08x}"


def test_a_local_file(tmp_path: Path) -> None:
    storage, path = Storage(), str(tmp_path / "a")
    output = storage.output(path, "tag")
    output.write(b"some content")
    output.finish()
    output.commit(lambda: None, "")
    entry = storage.entry(path)
    assert entry is not None
    assert is_intact(storage, path, entry, output.digest)
    Path(path).write_bytes(b"some_content")
    assert not is_intact(storage, path, entry, output.digest)
    Path(path).unlink()
    assert not is_intact(storage, path, entry, output.digest)


@pytest.mark.parametrize("size", [1000, ONE_PUT_BYTES + 1000])
def test_an_object_by_its_etag_or_by_its_content(bucket: Bucket, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ETags are no MD5s, the object is read: here its entry has none."""
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    storage, path = Storage(), f"{bucket.url}/a"
    output = storage.output(path, "tag")
    output.write(os.urandom(size))
    output.finish()
    output.commit(lambda: None, "")
    entry = storage.entry(path)
    assert entry is not None
    assert entry.version.strip('"') == output.digest.removeprefix("md5:")
    assert digest_of(storage, path, entry, output.digest) == output.digest
    assert is_intact(storage, path, Entry(path, size, '"another"'), output.digest)
    bucket.files.pipe(f"{bucket.name}/a", os.urandom(size))
    changed = storage.entry(path)
    assert changed is not None
    assert not is_intact(storage, path, changed, output.digest)
