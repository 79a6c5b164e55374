"""`stagger status --verify`: compares the outputs of done ranks with their completion records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from stagger.launch.foreign import foreign_beside
from stagger.launch.stages import lost_results
from stagger.progress import busy
from stagger.ranks import format_ranks
from stagger.rundir.run_folder import RunRecord
from stagger.status.look import Look
from stagger.status.stage_status import StageStatus


def note_differences(
    record: RunRecord, looks: Mapping[str, Look], stages: Sequence[StageStatus], *, checksums: bool = False
) -> None:
    """Note in `stages` which outputs of done ranks are missing or have another size than recorded.

    With `checksums`, also those with another content. And which files have names of outputs, but are none. Outputs that
    only finished stages have read may be missing. Costs a listing per folder.
    """
    with busy("comparing outputs with their records"):
        lost = lost_results(looks, looks, checksums=checksums)
        foreign = foreign_beside(record, looks)
    for stage in stages:
        if paths := lost.get(stage.name):
            stage.lost = {
                "ranks": format_ranks(one.rank for one in paths.values()),
                "files": len(paths),
                "first": next(iter(paths)),
                "kinds": dict(Counter(one.how for one in paths.values()).most_common()),
            }
        stage.foreign = [str(one) for one in foreign if one.stage == stage.name]
