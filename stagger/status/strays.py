"""Output files that are visible but belong to no completion record: what a commit that was cut off leaves."""

from __future__ import annotations

from dataclasses import dataclass

from stagger.errors import StaggerError, counted
from stagger.ranks import named_ranks
from stagger.rundir.commit_claims import claims_of
from stagger.rundir.progress_pages import outputs_in
from stagger.rundir.stage_folder import StageFolder


@dataclass(frozen=True)
class Strays:
    """`files` are paths, ascending by rank; `ranks` those whose attempts left them."""

    ranks: list[int]
    files: list[str]

    def __str__(self) -> str:
        more = ", ..." if len(self.files) > 1 else ""
        return (
            f"{counted(len(self.files), 'visible output file', 'belongs')} to no completed attempt (of"
            f" {named_ranks(self.ranks)}), left by a commit that was cut off: {self.files[0]}{more};"
            f" a retry of ranks that are not done replaces theirs"
        )


def find_strays(folder: StageFolder, ended: set[int], repeated: set[int]) -> Strays | None:
    """The visible files that attempts at ranks have left; None if there are none. No rank is active.

    The `ended` ranks are not done. The `repeated` ones are; they can have left files only if they have several claims.
    Costs a listing of the claims if there are ranks, a read of each of their claims, and a look for each file in them.
    """
    ranks = ended | repeated
    if not ranks or not (claims := claims_of(folder, ranks, repeated)):
        return None
    records = folder.completions(repeated & claims.keys())
    recorded = {record["rank"]: {output["path"] for output in record["outputs"]} for record in records}
    progress = folder.storage.read_many([folder.progress(rank) for rank in claims])
    of_rank: dict[str, int] = {}
    for (rank, mine), data in zip(claims.items(), progress, strict=True):
        try:
            kept = recorded[rank] if rank in recorded else outputs_in(folder, rank, data)
        except StaggerError:  # Its next attempt will name the damaged record.
            continue
        of_rank |= {file["path"]: rank for claim in mine for file in claim["files"] if file["path"] not in kept}
    paths = list(of_rank)
    visible = [path for path, entry in zip(paths, folder.storage.entries(paths), strict=True) if entry is not None]
    return Strays(sorted({of_rank[path] for path in visible}), visible) if visible else None
