"""Which blocks of a swarm no server serves, while a stage that uses it is at work: it waits for them."""

from __future__ import annotations

from collections.abc import Mapping

from stagger.errors import StaggerError, agreeing, counted, plural
from stagger.ranks import format_ranks
from stagger.status.look import Look


def waits_for_blocks(look: Look, looks: Mapping[str, Look]) -> list[str]:
    """What a stage waits for that runs beside swarms: one clause for each of them that lacks blocks.

    Costs one listing for each swarm, and one read of each server's record, while the stage runs.
    """
    if not (look.activity.running | look.activity.starting.keys()) - look.done:
        return []
    return [said for name in look.stage.spec.uses if (said := missing(looks[name]))]


def missing(swarm: Look) -> str:
    """The blocks of a swarm without a server, and what its servers do; empty if all are served."""
    from stagger.blocks.coverage import missing_blocks  # Few runs have swarms.
    from stagger.blocks.server.records import View, rank_of
    from stagger.blocks.swarm_place import SwarmPlace

    stage, activity = swarm.stage, swarm.activity
    assert stage.spec.blocks is not None
    place = SwarmPlace.of(stage.name, stage.folder.path, stage.spec.blocks)
    running = activity.running | activity.starting.keys() | activity.unknown
    try:
        view = place.registry(stage.folder.storage, lambda _: None).refresh()
    except (OSError, StaggerError) as error:
        return f"{stage.name}, whose registry cannot be read: {error}"
    alive = View(view.claim, {name: one for name, one in view.members.items() if rank_of(name) in running})
    if not (blocks := missing_blocks(alive, place.total_blocks)):
        return ""
    queued = len(activity.pending | activity.requeued)
    states = [
        text
        for number, text in (
            (len(running), f"{len(running)} {agreeing(len(running), 'runs')}"),
            (queued, f"{queued} {agreeing(queued, 'is')} queued"),
        )
        if number
    ]
    servers = (
        f"of its {counted(stage.spec.tasks, 'server')} " + " and ".join(states)
        if states
        else "none of its servers runs"
    )
    return f"{plural(len(blocks), 'block')} {format_ranks(blocks)} of {stage.name}, which no server serves; {servers}"
