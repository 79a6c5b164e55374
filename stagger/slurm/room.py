"""How many more jobs this user may submit: the limits of associations and QOS, and what already counts against them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stagger.errors import StaggerError
from stagger.slurm.cluster import ONCE, own_user
from stagger.slurm.command import run


@dataclass(frozen=True)
class SubmitLimit:
    """At most `most` jobs may be queued or running at once, of which there are `used`. `name` names the limit."""

    name: str
    most: int
    used: int = 0


@dataclass(frozen=True)
class Charge:
    """What a job is charged to. An empty part stands for the user's, or the cluster's, default."""

    account: str = ""
    partition: str = ""
    qos: str = ""


def submit_limits(charge: Charge) -> list[SubmitLimit]:
    """The limits that hold for jobs with this charge; empty without accounting, or where Slurm does not show them."""
    user = own_user()
    association = _ask("sacctmgr", "show", "assoc", "where", f"user={user}", f"format={','.join(ASSOCIATION)}")
    usage = _ask("scontrol", "show", "assoc_mgr", f"users={user}", "flags=assoc,qos")
    levels = _ask("sacctmgr", "show", "qos", f"format={','.join(QOS)}")
    partition = _ask("scontrol", "show", "partition", charge.partition) if charge.partition else ""
    return limits_of(charge, association, levels, usage, partition_qos(partition))


def allows_no_job(charge: Charge) -> str:
    """The limit of 0 jobs that holds for jobs with this charge; empty if there is none, or Slurm does not show it."""
    return zero_limit(charge, _ask("scontrol", "show", "assoc_mgr", f"users={own_user()}", "flags=assoc,qos"))


def zero_limit(charge: Charge, text: str) -> str:
    """The limit of 0 jobs for this charge in the output of `scontrol show assoc_mgr`, by its name; empty for none."""
    records, _, levels = text.partition("QOS Records")
    usage = parse_usage(text)
    account = charge.account or usage.default
    above = [account]
    while above[-1] in usage.accounts:
        above.append(usage.accounts[above[-1]][2])
    for record in re.split(r"^(?=ClusterName=)", records, flags=re.MULTILINE)[1:]:
        name = _value(record, "Account")
        if _value(record, "UserName"):
            for key in ("MaxJobs", "GrpJobs"):
                if name == account and _limit(record, key)[0] == 0:
                    return f"your {key} in the account {account}"
        elif name in above and _limit(record, "GrpJobs")[0] == 0:
            return f"the GrpJobs of the account {name}"
    for record in re.split(r"^(?=QOS=)", levels, flags=re.MULTILINE)[1:]:
        name = _value(record, "QOS").partition("(")[0]
        for key in ("GrpJobs", "MaxJobsPU", "MaxJobsPA"):
            if name == (charge.qos or "normal") and _limit(record, key)[0] == 0:
                return f"the {key} of the QOS {name}"
    return ""


def _ask(program: str, *arguments: str) -> str:
    options = ["--noheader", "--parsable2"] if program == "sacctmgr" else []
    try:
        return run([program, *options, *arguments], ONCE)
    except StaggerError:
        return ""


#: The fields of `sacctmgr show assoc` and `show qos` that `limits_of` reads, in order.
ASSOCIATION = ("Account", "Partition", "DefaultQOS", "MaxSubmitJobs")
QOS = ("Name", "GrpSubmitJobs", "MaxSubmitJobsPerUser", "MaxSubmitJobsPerAccount")


def partition_qos(text: str) -> str:
    r"""The QOS of a partition, in the output of `scontrol show partition`; empty if it has none.

    >>> partition_qos("PartitionName=a\n   AllocNodes=ALL QoS=few\n"), partition_qos("QoS=N/A")
    ('few', '')
    """
    found = re.search(r"\bQoS=(\S+)", text)
    return "" if found is None or found[1] == "N/A" else found[1]


def limits_of(charge: Charge, associations: str, levels: str, usage: str, of_partition: str) -> list[SubmitLimit]:
    """The limits of a charge: of the user's association, of the accounts above it, and of its QOS and the partition's.

    Args:
        charge: what the jobs are charged to.
        associations: `sacctmgr show assoc`, with the fields ASSOCIATION.
        levels: `sacctmgr show qos`, with the fields QOS.
        usage: `scontrol show assoc_mgr`, which also says what is used. Not every cluster shows it.
        of_partition: the partition's own QOS.
    """
    used = parse_usage(usage)
    account = charge.account or used.default or _first(associations, 0)
    mine = [row for row in _rows(associations) if row[0] == account and row[1] in ("", charge.partition)]
    mine = sorted(mine, key=lambda row: row[1])[-1:]  # An association with the partition precedes one without.
    found = [
        SubmitLimit(f"your MaxSubmitJobs in the account {account}", int(row[3]), used.own.get((account, row[1]), 0))
        for row in mine
        if row[3].isdigit()
    ]
    above = account
    while above in used.accounts:
        most, count, parent = used.accounts[above]
        if most is not None:
            found.append(SubmitLimit(f"the GrpSubmitJobs of the account {above}", most, count))
        above = parent
    names = {charge.qos or next((row[2] for row in mine if row[2]), "normal"), of_partition}
    for name, *numbers in _rows(levels):
        if name in names:
            for key, number in zip(QOS[1:], numbers, strict=True):
                if number.isdigit():
                    found.append(
                        SubmitLimit(f"the {key} of the QOS {name}", int(number), used.levels.get((name, key), 0))
                    )
    return found


def _rows(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.split("|")] for line in text.splitlines() if "|" in line]


def _first(text: str, column: int) -> str:
    return next((row[column] for row in _rows(text)), "")


@dataclass(frozen=True)
class Usage:
    """What counts against limits now.

    default: the user's default account.
    own: (account, partition) -> the user's jobs there.
    accounts: account -> its GrpSubmitJobs (None without a limit), its jobs, and the account above it.
    levels: (QOS, key of QOS) -> the jobs that count against it.
    """

    default: str
    own: dict[tuple[str, str], int]
    accounts: dict[str, tuple[int | None, int, str]]
    levels: dict[tuple[str, str], int]


def parse_usage(text: str) -> Usage:
    """Parse `scontrol show assoc_mgr users=ME flags=assoc,qos`, in which a limit is followed by its use: `5(2)`."""
    usage = Usage("", {}, {}, {})
    records, _, levels = text.partition("QOS Records")
    default = ""
    for record in re.split(r"^(?=ClusterName=)", records, flags=re.MULTILINE)[1:]:
        account, partition = _value(record, "Account"), _value(record, "Partition")
        most, count = _limit(record, "GrpSubmitJobs")
        if _value(record, "UserName"):
            usage.own[account, partition] = _limit(record, "MaxSubmitJobs")[1] or count
            default = account if _value(record, "DefAssoc") == "Yes" else default
        else:
            parent = _value(record, "ParentAccount").partition("(")[0]
            usage.accounts[account] = (most, count, parent)
    for record in re.split(r"^(?=QOS=)", levels, flags=re.MULTILINE)[1:]:
        name = _value(record, "QOS").partition("(")[0]
        for key, written in zip(QOS[1:], ("GrpSubmitJobs", "MaxSubmitJobsPU", "MaxSubmitJobsPA"), strict=True):
            usage.levels[name, key] = _limit(record, written)[1]
    return Usage(default, usage.own, usage.accounts, usage.levels)


def _value(record: str, key: str) -> str:
    found = re.search(rf"(?:^|\s){key}=(\S*)", record)
    return found[1] if found else ""


def _limit(record: str, key: str) -> tuple[int | None, int]:
    """A limit and its use, of a text such as `5(2)`; None for no limit: `N(2)`, or nothing."""
    found = re.fullmatch(r"(\d+|N)(?:\((\d+)\))?", _value(record, key))
    if found is None:
        return None, 0
    return (int(found[1]) if found[1] != "N" else None), int(found[2] or 0)
