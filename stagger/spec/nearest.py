"""The name that was probably meant: the end of every message about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

#: The share of letters that a name must have in common with the one that is suggested for it; and if it begins a name.
ALIKE, MORE_ALIKE = 0.6, 0.85

#: The fewest letters of which a name that begins with them is suggested.
BEGINNING = 3

#: What else the field calls some values.
SYNONYMS = {
    "fp16": "float16",
    "half": "float16",
    "f16": "float16",
    "fp32": "float32",
    "f32": "float32",
    "bf16": "bfloat16",
}


def close_to(name: str, valid: Sequence[str]) -> str | None:
    """The valid name that `name` was probably meant to be: one in other letters or signs, or that it begins, or that
    is spelled alike.

    >>> close_to("Task", ["tasks", "name"]), close_to("gpus", ["name", "gpus_per_task"]), close_to("x", ["name"])
    ('tasks', 'gpus_per_task', None)
    >>> close_to("half", ["bfloat16", "float16"]), close_to("torch.fp32", ["float16", "float32"])
    ('float16', 'float32')
    """
    plain = {_plain(one): one for one in reversed(valid)}
    wanted = _plain(name)
    if (meant := SYNONYMS.get(wanted.removeprefix("torch."))) in plain:
        return meant
    if wanted in plain:
        return plain[wanted]
    if alike := difflib.get_close_matches(wanted, plain, n=1, cutoff=MORE_ALIKE):
        return plain[alike[0]]
    if len(wanted) >= BEGINNING and (longer := [one for one in valid if _plain(one).startswith(wanted)]):
        return min(longer, key=len)
    alike = difflib.get_close_matches(wanted, plain, n=1, cutoff=ALIKE)
    return plain[alike[0]] if alike else None


def nearest(name: str, valid: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest valid name, or all valid names."""
    if (close := close_to(name, valid)) is not None:
        return f"did you mean {close!r}?"
    return f"choose from {', '.join(valid)}." if valid else "there are no valid names."


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
