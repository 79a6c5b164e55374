"""What a stage that uses a swarm knows about it: where its servers find one another, and how patient users are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from stagger.storage.storage import Storage, join

if TYPE_CHECKING:
    from stagger.blocks.server.registry import Registry
    from stagger.spec.blocks import BlocksSpec

#: The file in a registry that says that the swarm has ended: its servers leave, and those that start later do not join.
END = "end.json"


def registry_folder(stage_dir: str) -> str:
    """The folder of a stage's registry, where its servers find one another."""
    return join(stage_dir, "registry")


@dataclass(frozen=True)
class SwarmPlace:
    """A swarm, for the ranks of a stage that uses it (`Circumstances.uses` of their task).

    `stage_dir` is the folder of the swarm's stage; `total_blocks` and `model` are those of the model; `servers` is the
    number of servers wanted. `heartbeat_s` and `lease_s` are those of the servers, in seconds. `patience_s` is how many
    seconds blocks may be without a server before users give up (`stagger.blocks.coverage`); None for the default.
    """

    name: str
    stage_dir: str
    total_blocks: int
    servers: int
    heartbeat_s: float
    lease_s: float
    patience_s: float | None = None
    model: str | None = None
    host: str = "simulated"
    host_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, stage_dir: str, blocks: BlocksSpec) -> SwarmPlace:
        """The place of stage `name`, whose files lie in `stage_dir`."""
        assert blocks.total is not None
        return cls(
            name,
            stage_dir,
            blocks.total,
            blocks.servers,
            blocks.heartbeat,
            blocks.lease,
            blocks.patience,
            blocks.model,
            blocks.host,
            blocks.host_options,
        )

    def fields(self) -> dict[str, Any]:
        return asdict(self)

    def registry(self, storage: Storage, tell: Callable[[str], None] = print) -> Registry:
        """A reader of the swarm's registry. Needs numpy. `tell` gets a message about each damaged file, once."""
        from stagger.blocks.server.registry import Registry

        return Registry(storage, registry_folder(self.stage_dir), self.total_blocks, lease_s=self.lease_s, tell=tell)
