"""Which servers of a swarm a client may use, from what they say in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagger.blocks.server.records import Member, View
from stagger.blocks.serving.connections import Looked
from stagger.blocks.serving.routing import Offer

#: What must be equal in a client and in its servers, else numbers would differ -> what it is, in words.
EQUAL = {"fingerprint": "other files of the model", "dtype": "another dtype"}


@dataclass
class Discovery:
    """Reads offers out of views of a registry.

    mine: the client's values of EQUAL. encrypt: whether servers must have a key.
    `refused`: server -> why it cannot be used. `devices`: the kinds of devices of the servers that can.
    """

    mine: Mapping[str, str]
    encrypt: bool
    refused: dict[str, str] = field(default_factory=dict)
    devices: set[str] = field(default_factory=set)

    def offers(self, view: View) -> Looked:
        found = {}
        for name, member in view.members.items():
            if member.record is None or member.serving is None:
                continue
            about = member.record.about
            if why := self._unlike(about):
                self.refused[name] = why
                continue
            self.devices.add(str(about.get("device", "")))
            found[name] = offer(name, member, about)
        return Looked(found, view.claim)

    def _unlike(self, about: Mapping[str, Any]) -> str:
        """Why a server cannot be used; empty if it can."""
        if not isinstance(about.get("address"), str):
            return "it serves no hidden states: it has no address"
        if self.encrypt and not about.get("public_key"):
            return "it has no key, and host_options.encrypt is not false"
        for key, what in EQUAL.items():
            if about.get(key) != self.mine[key]:
                return f"it has {what} ({about.get(key)}, not {self.mine[key]})"
        return ""


def offer(name: str, member: Member, about: Mapping[str, Any]) -> Offer:
    """What a member serves and keeps, at its rate of passes."""
    assert member.record is not None
    start, end = member.keeps or member.serving or (0, 0)
    hosted = member.record.end - member.record.start
    rate = member.record.pass_throughput * hosted
    key = str(about.get("public_key", "")).encode()
    return Offer(name, about["address"], key, start, end, rate)
