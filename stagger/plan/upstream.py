"""What a stage may read of the folders that the stages before it write to: the files that their records list.

Other files with such names are an earlier run's, an earlier division's, or were put there since the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from stagger.pipeline import Shard
from stagger.pipeline.shard_table import ShardTable
from stagger.rundir.output_names import OutputNames, Places


@dataclass(frozen=True)
class Upstream:
    """A stage that another one depends on. `outputs` are the paths in its completion records."""

    stage: str
    names: Sequence[OutputNames]
    outputs: Collection[str]


def recorded_only(
    shards: ShardTable, path_of: Callable[[Shard], str], upstream: Sequence[Upstream]
) -> tuple[ShardTable, list[tuple[str, str]]]:
    """The shards that are recorded outputs of `upstream`, or none of its outputs by their name.

    The list holds (path, stage) of each other shard.
    """
    places = Places()
    recorded = {places.file(path) for stage in upstream for path in stage.outputs}
    foreign: list[tuple[str, str]] = []

    def kept() -> Iterator[Shard]:
        for shard in shards:
            path = path_of(shard)
            stage = "" if places.file(path) in recorded else writer_of(path, upstream, places)
            if stage:
                foreign.append((path, stage))
            else:
                yield shard

    return ShardTable(kept()), foreign


def writer_of(path: str, stages: Iterable[Upstream], places: Places) -> str:
    """The stage that writes files with such a path; empty if none does."""
    for stage in stages:
        for names in stage.names:
            name = places.below(names.folder, path)
            if name is not None and names.fits(name):
                return stage.stage
    return ""
