"""What progress records name: outputs, and pages that hold those of earlier shards, so that a record stays small.

A page is written before the first record that names it, under a name of its attempt's own, and never changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TypedDict

from stagger.errors import StaggerError
from stagger.rundir.records import OutputRecord
from stagger.rundir.stage_folder import StageFolder, check_record, damaged, decode
from stagger.storage.storage import join


class _Page(TypedDict):
    outputs: list[OutputRecord]


class _Progress(_Page, total=False):
    pages: list[str]


def page_paths(folder: StageFolder, rank: int, record: Mapping[str, Any]) -> list[str]:
    """The paths of the pages that a progress record names. Raises StaggerError for a name that no page has."""
    for name in record.get("pages", []):
        if "/" in name:
            raise damaged(folder.progress(rank), f"{name!r} is no page")
    return [join(folder.path, "progress", name) for name in record.get("pages", [])]


def outputs_of(folder: StageFolder, rank: int, record: Mapping[str, Any]) -> list[OutputRecord]:
    """All outputs that a checked progress record names, in order. Raises StaggerError for a damaged or missing page."""
    paths = page_paths(folder, rank, record)
    found: list[OutputRecord] = []
    for path, data in zip(paths, folder.storage.read_many(paths) if paths else [], strict=True):
        if data is None:
            raise damaged(folder.progress(rank), f"{path} is missing")
        page = decode(data, path, "outputs")
        check_record(page, _Page, path)
        found += page["outputs"]
    return [*found, *record["outputs"]]


def outputs_in(folder: StageFolder, rank: int, data: bytes | None) -> set[str]:
    """The paths of the outputs that a progress record names, if there is one. Raises StaggerError for a damaged one."""
    if data is None:
        return set()
    path = folder.progress(rank)
    record = decode(data, path, "outputs")
    check_record(record, _Progress, path)
    return {output["path"] for output in outputs_of(folder, rank, record)}


def remove_progress(folder: StageFolder, rank: int) -> None:
    """Remove the progress record of a rank and its pages."""
    path = folder.progress(rank)
    data = folder.storage.read_many([path])[0]
    folder.storage.remove(path)
    if data is not None:
        with contextlib.suppress(StaggerError):  # A damaged record names no pages.
            record = decode(data, path, "outputs")
            check_record(record, _Progress, path)
            for page in page_paths(folder, rank, record):
                folder.storage.remove(page)
