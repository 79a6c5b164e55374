"""Output files that are visible although their rank has no completion record: what a commit that was cut off leaves."""

from __future__ import annotations

from dataclasses import dataclass

from stagger.ranks import format_ranks
from stagger.rundir.commit_claims import claims_of
from stagger.rundir.stage_folder import StageFolder, decode


@dataclass(frozen=True)
class Strays:
    """`files` are paths, ascending by rank. A retry of `ranks` replaces or removes them."""

    ranks: list[int]
    files: list[str]

    def __str__(self) -> str:
        count, several = len(self.files), len(self.files) > 1
        return (
            f"{count} file{'s' if several else ''} of ranks that are not done (rank {format_ranks(self.ranks)})"
            f" {'are' if several else 'is'} visible, left by a commit that was cut off: {self.files[0]}"
            f"{', ...' if several else ''}; a retry replaces {'them' if several else 'it'}"
        )


def find_strays(folder: StageFolder, ranks: set[int]) -> Strays | None:
    """The visible files of `ranks`, which are neither done nor active; None if there are none.

    Costs a listing of the claims if there are ranks, a read of each of their claims, and a look for each file in them.
    """
    if not ranks or not (claims := claims_of(folder, ranks)):
        return None
    progress = folder.storage.read_many([folder.progress(rank) for rank in claims])
    of_rank: dict[str, int] = {}
    for (rank, mine), data in zip(claims.items(), progress, strict=True):
        record = {"outputs": []} if data is None else decode(data, folder.progress(rank), "outputs")
        kept = {output["path"] for output in record["outputs"]}
        of_rank |= {file["path"]: rank for claim in mine for file in claim["files"] if file["path"] not in kept}
    paths = list(of_rank)
    visible = [path for path, entry in zip(paths, folder.storage.entries(paths), strict=True) if entry is not None]
    if not visible:
        return None
    return Strays(sorted({of_rank[path] for path in visible}), visible)
