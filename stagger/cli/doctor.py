"""The text of `stagger doctor`."""

from __future__ import annotations

from collections.abc import Iterable

from stagger.doctor import Check
from stagger.terminal import say

SIGNS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


def show(found: Iterable[Check]) -> list[Check]:
    """Print each check as soon as it is made, and return all of them."""
    checks = []
    for check in found:
        say(f"{SIGNS[check.state]:<8} {check.name:<11} {check.text}", flush=True)
        checks.append(check)
    return checks
