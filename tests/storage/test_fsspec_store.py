"""Stores that only fsspec knows: retried like all others, and their errors name the path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest

from stagger.errors import StorageError
from stagger.storage.storage import Storage

ROOT = "memory://store"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """fsspec's file system in memory; waits between retries are short."""
    monkeypatch.setattr("stagger.backoff.WAITS_S", [0.001])
    found = fsspec.filesystem("memory")
    yield found
    found.store.clear()


def failing(real: Callable[..., Any], times: int, *, after: bool = False) -> Callable[..., Any]:
    """`real`, whose first calls fail: before they do anything, or only their answer is lost."""
    left = [times]

    def call(*arguments: Any, **more: Any) -> Any:
        if left[0] and not after:
            left[0] -= 1
            raise ConnectionResetError(104, "reset by peer")
        found = real(*arguments, **more)
        if left[0]:
            left[0] -= 1
            raise ConnectionResetError(104, "reset by peer")
        return found

    return call


def write(storage: Storage, name: str, data: bytes) -> None:
    output = storage.output(f"{ROOT}/{name}", "tag")
    output.write(data)
    output.finish()
    output.commit()


def test_a_commit_is_retried(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    monkeypatch.setattr(files, "pipe_file", failing(files.pipe_file, 2))
    write(storage, "a", b"content")
    assert storage.read(f"{ROOT}/a") == b"content"
    assert storage.retried()["requests"] == {"reset": 2}


def test_the_commit_of_a_large_output_is_retried(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagger.storage.fsspec_store.ONE_PUT_BYTES", 1000)
    monkeypatch.setattr(files, "open", failing(files.open, 2))
    storage = Storage()
    write(storage, "a", bytes(5000))
    assert storage.read(f"{ROOT}/a") == bytes(5000)
    assert storage.retried()["requests"] == {"reset": 2}


@pytest.mark.parametrize("lost", [False, True])
def test_a_create_is_retried_and_made_once(files: Any, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    storage = Storage()
    monkeypatch.setattr(files, "pipe_file", failing(files.pipe_file, 1, after=lost))
    assert storage.create(f"{ROOT}/lock", b"mine")
    assert not storage.create(f"{ROOT}/lock", b"mine")
    assert storage.read(f"{ROOT}/lock") == b"mine"


@pytest.mark.parametrize("large", [False, True])
def test_errors_name_the_path(files: Any, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    monkeypatch.setattr("stagger.storage.fsspec_store.ONE_PUT_BYTES", 1000)

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise PermissionError(13, "not yours")

    monkeypatch.setattr(files, "open" if large else "pipe_file", refuse)
    with pytest.raises(StorageError, match=f"^{ROOT}/a: PermissionError: .*not yours"):
        write(Storage(), "a", bytes(5000 if large else 50))


@pytest.mark.parametrize("kept", [0, 40])
def test_an_object_that_is_not_kept_whole_is_sent_again_or_fails(
    files: Any, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    real, lies = files.pipe_file, [2]

    def keep_less(path: str, data: bytes, **more: Any) -> None:
        lies[0] -= 1
        if lies[0] < 0:
            real(path, data, **more)
        elif kept:
            real(path, data[:kept], **more)

    monkeypatch.setattr(files, "pipe_file", keep_less)
    write(Storage(), "a", bytes(50))
    assert files.cat_file(f"{ROOT}/a") == bytes(50)
    files.store.clear()
    lies[0] = 10**6
    with pytest.raises(StorageError, match=r"does not have it|holds 40 bytes of the 50"):
        write(Storage(retry_s=0.05), "a", bytes(50))


def test_a_store_that_ignores_ranges_is_an_error(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files.pipe_file(f"{ROOT}/a", bytes(100))
    monkeypatch.setattr(files, "cat_file", lambda path, start=None, end=None: bytes(100))
    with pytest.raises(StorageError, match="20 bytes were requested, and the store answered with 100"):
        Storage(retry_s=0.05).read_range(f"{ROOT}/a", 10, 30)
