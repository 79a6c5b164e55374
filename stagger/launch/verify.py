"""`stagger status --verify`: compares the outputs of done ranks with their completion records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stagger.launch.stages import lost_results
from stagger.progress import busy
from stagger.ranks import format_ranks
from stagger.status.look import Look
from stagger.status.stage_status import StageStatus


def note_lost(looks: Mapping[str, Look], stages: Sequence[StageStatus]) -> None:
    """Note in `stages` which outputs of done ranks are missing or have another size than recorded.

    Outputs that only finished stages have read are not checked: they may be removed. Costs a listing per folder.
    """
    with busy("comparing outputs with their records"):
        lost = lost_results(looks, looks)
    for stage in stages:
        if paths := lost.get(stage.name):
            stage.lost = {"ranks": format_ranks(paths.values()), "files": len(paths), "first": next(iter(paths))}
