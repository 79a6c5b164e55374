"""Which nodes the jobs of a retry avoid: those on which several ranks failed for reasons of the node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stagger.errors import StaggerError
from stagger.launch.retry_policy import bad_nodes, some_left
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import SlurmLaunch
from stagger.slurm import cluster
from stagger.spec.executors import SlurmSpec
from stagger.status.failed import Failed
from stagger.status.look import Look
from stagger.terminal import logger

#: Options of sbatch that choose nodes: stagger then knows too little of those that are left.
CHOOSING = ("nodelist", "nodefile")

#: Options of sbatch that leave only some nodes of the partition.
NARROWING = ("constraint", "reservation", "cluster-constraint", "clusters", "gres")


def nodes_to_avoid(look: Look) -> tuple[str, ...]:
    """The nodes that the next launch of a stage avoids: those that its latest launch avoided, and newly bad ones.

    Logs a sentence that names them. Reads the completion records only if a node is suspected.
    """
    settings, launches = look.stage.spec.executor, [one for one in look.launches if isinstance(one, SlurmLaunch)]
    if not isinstance(settings, SlurmSpec) or not settings.avoid_nodes or not launches:
        return ()
    if any(option in settings.sbatch for option in CHOOSING):
        return ()
    before = launches[-1].avoided
    bad = _bad(look, settings, before)
    if bad or before:
        logger.warning(f"{look.stage.name}: {_sentence(bad, before)}")
    return (*before, *sorted(bad))


def _bad(look: Look, settings: SlurmSpec, avoided: Sequence[str]) -> dict[str, list[Failed]]:
    """The bad nodes of the latest launches; none if no other node might be left."""
    failed = [one for one in look.failed if one.node not in avoided]
    if not bad_nodes(failed, {}):
        return {}
    succeeded = Counter(record["host"] for record in look.completions if record["host"] not in avoided)
    bad = bad_nodes(failed, succeeded)
    left = some_left(bad, succeeded, untried=False) or some_left(bad, succeeded, untried=_has_untried(settings))
    return bad if left else {}


def _has_untried(settings: SlurmSpec) -> bool:
    """Whether the partition has several nodes, and no setting chooses among them."""
    if settings.gpus_per_task or settings.nodes_per_task > 1 or any(one in settings.sbatch for one in NARROWING):
        return False
    try:
        found = cluster.partitions()
    except StaggerError:
        return False
    wanted = settings.sbatch.get("partition", settings.partition)
    return any(one.nodes > 1 for one in found if one.name == wanted) if wanted else all(one.nodes > 1 for one in found)


def _sentence(bad: dict[str, list[Failed]], before: tuple[str, ...]) -> str:
    parts = [
        f"{node}, on which rank{'s' if len(ranks) > 1 else ''} {format_ranks(one.rank for one in ranks)} failed"
        f" ({ranks[0].reason})"
        for node, ranks in sorted(bad.items())
    ]
    parts += [f"{', '.join(before)}, as the launch before"] if before else []
    return f"the jobs avoid node {'; '.join(parts)} (executor.avoid_nodes: false allows all nodes)"
