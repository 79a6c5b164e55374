"""The record of every launch of a stage: launches/<n>/launch.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagger.rundir.stage_folder import StageFolder, decode, encode
from stagger.storage.storage import join


def read_launches(folder: StageFolder) -> list[dict[str, Any]]:
    """All launch records of a stage, oldest first."""
    records = []
    number = 1
    while True:
        path = record_path(folder, number)
        try:
            records.append(decode(folder.storage.read(path), path, "launch", "executor", "ranks", "settings"))
        except FileNotFoundError:
            return records
        number += 1


def record_path(folder: StageFolder, number: int) -> str:
    return join(folder.launch(number), "launch.json")


def write_launch(folder: StageFolder, record: dict[str, Any]) -> None:
    folder.storage.write(record_path(folder, record["launch"]), encode(record))


@dataclass(frozen=True)
class Group:
    """Ranks of a launch that share their resources: so many times what the file says, in try `tries` (0: the first)."""

    ranks: list[int]
    tries: int = 0
    memory_scale: float = 1.0
    time_scale: float = 1.0
