"""What Slurm says about a site: its partitions, whether nodes are given whole, the user's accounts and QOS."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass

from stagger.errors import StaggerError
from stagger.slurm.command import run

#: Words of Slurm for no limit and no value.
NOTHING = ("", "NONE", "UNLIMITED", "(null)", "N/A")


@dataclass(frozen=True)
class SitePartition:
    """A partition. Times are in Slurm's format, empty without a limit; `cpus` are processors per node.

    `whole` is whether a job gets whole nodes.
    """

    name: str
    default: bool
    nodes: int
    cpus: int
    default_time: str
    max_time: str
    whole: bool


@dataclass(frozen=True)
class Site:
    """A cluster as one user sees it. The default account comes first."""

    cluster: str
    partitions: tuple[SitePartition, ...]
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()

    def partition(self, name: str | None) -> SitePartition | None:
        """The partition of this name, or the default one."""
        found = [one for one in self.partitions if (one.default if name is None else one.name == name)]
        return found[0] if found else None


def look_at_site() -> Site:
    """Ask Slurm. Raises StaggerError when the controller does not answer; without accounting there are no accounts."""
    config = fields(run(["scontrol", "show", "config"]), lines=True)
    linear = config.get("SelectType") == "select/linear"
    partitions = parse_site_partitions(run(["scontrol", "--all", "--oneliner", "show", "partition"]), linear)
    accounts, qos = _associations()
    return Site(config.get("ClusterName", ""), partitions, accounts, qos)


def fields(text: str, *, lines: bool = False) -> dict[str, str]:
    """The `Key=value` words of a line or, with `lines`, one of them per line.

    >>> fields("PartitionName=cpu Default=YES")["Default"], fields("SelectType = select/linear", lines=True)
    ('YES', {'SelectType': 'select/linear'})
    """
    parts = text.splitlines() if lines else text.split()
    pairs = (part.partition("=") for part in parts)
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def parse_site_partitions(text: str, linear: bool) -> tuple[SitePartition, ...]:
    """Parse `scontrol --oneliner show partition`. `linear` is whether Slurm gives whole nodes only (select/linear).

    >>> line = "PartitionName=cpu Default=YES DefaultTime=NONE MaxTime=1-00:00:00 OverSubscribe=EXCLUSIVE State=UP"
    >>> parse_site_partitions(f"{line} TotalCPUs=256 TotalNodes=4", False)[0].whole
    True
    """
    rows = [fields(line) for line in text.splitlines() if line.startswith("PartitionName=")]
    return tuple(_partition(row, linear) for row in rows if row.get("State", "UP") == "UP")


def _partition(row: Mapping[str, str], linear: bool) -> SitePartition:
    nodes, cpus = (int(text) if (text := row.get(key, "")).isdigit() else 0 for key in ("TotalNodes", "TotalCPUs"))
    default_time, max_time = (
        "" if (text := row.get(key, "")) in NOTHING else text for key in ("DefaultTime", "MaxTime")
    )
    whole = linear or row.get("OverSubscribe", "").startswith("EXCLUSIVE")
    default = row.get("Default") == "YES"
    return SitePartition(row["PartitionName"], default, nodes, cpus // max(1, nodes), default_time, max_time, whole)


def _associations() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The user's accounts, the default one first, and the QOS that they allow; empty without accounting."""
    user = getpass.getuser()
    command = ["sacctmgr", "--noheader", "--parsable2", "show"]
    try:
        rows = run([*command, "assoc", "where", f"user={user}", "format=Account,QOS"])
        default = run([*command, "user", user, "format=DefaultAccount"]).strip()
    except StaggerError:
        return (), ()
    found = [line.split("|") for line in rows.splitlines() if "|" in line]
    accounts = dict.fromkeys(account for account in (default, *(row[0] for row in found)) if account)
    return tuple(accounts), tuple(dict.fromkeys(qos for row in found for qos in row[1].split(",") if qos))
