"""Which nodes the jobs of a retry avoid: those on which several ranks failed for reasons of the node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from stagger.errors import StaggerError
from stagger.launch.retry_policy import avoid, bad_nodes
from stagger.ranks import named_ranks
from stagger.rundir.launch_records import SlurmLaunch
from stagger.slurm import cluster
from stagger.spec.executors import SlurmSpec
from stagger.status.failed import Failed
from stagger.status.look import Look
from stagger.terminal import logger

#: Options of sbatch that choose nodes: stagger then knows too little of those that are left.
CHOOSING = ("nodelist", "nodefile")

#: Options of sbatch that leave only some nodes of the partition.
NARROWING = ("constraint", "exclude", "reservation", "cluster-constraint", "clusters", "gres")


def nodes_to_avoid(look: Look) -> tuple[str, ...]:
    """The nodes that the next launch of a stage avoids: those that its latest launch avoided, and newly bad ones.

    Logs a sentence that names them. Reads the completion records only if a node is suspected.
    """
    settings, launches = look.stage.spec.executor, [one for one in look.launches if isinstance(one, SlurmLaunch)]
    if not isinstance(settings, SlurmSpec) or not settings.avoid_nodes or not launches:
        return ()
    if any(option in settings.sbatch for option in CHOOSING):
        return ()
    avoided = launches[-1].avoided
    if not avoided and not bad_nodes(look.failed, {}):
        return ()
    succeeded = Counter(record["host"] for record in look.completions)
    untried = not avoided and not succeeded and _has_untried(settings)
    still, bad = avoid(avoided, look.failed, succeeded, untried=untried)
    if not still and not bad:
        return ()
    known = _known_nodes()  # Slurm refuses jobs that exclude a node which it does not have any more.
    still = [node for node in still if known is None or node in known]
    bad = {node: ranks for node, ranks in bad.items() if known is None or node in known}
    if still or bad:
        logger.warning(f"{look.stage.name}: {_sentence(bad, still)}")
    return (*still, *sorted(bad))


def _known_nodes() -> set[str] | None:
    """The cluster's nodes; None if Slurm does not say."""
    try:
        return cluster.node_names()
    except StaggerError:
        return None


def _has_untried(settings: SlurmSpec) -> bool:
    """Whether the partition has more nodes than a job needs, and no setting chooses among them."""
    if settings.gpus_per_task or any(one in settings.sbatch for one in NARROWING):
        return False
    try:
        found = cluster.partitions()
    except StaggerError:
        return False
    wanted = settings.sbatch.get("partition", settings.partition)
    nodes = [one.nodes for one in found if wanted in (None, one.name)]
    return min(nodes, default=0) > max(settings.nodes_per_task, settings.nodes_per_job)


def _sentence(bad: Mapping[str, list[Failed]], still: Sequence[str]) -> str:
    parts = [
        f"{node}, on which {named_ranks(one.rank for one in ranks)} failed ({ranks[0].reason})"
        for node, ranks in sorted(bad.items())
    ]
    parts += [f"{', '.join(still)}, as in the launch before"] if still else []
    return f"the jobs avoid node {'; '.join(parts)} (executor.avoid_nodes: false allows all nodes)"
