"""Which models the ranks of a stage used, by the notes of model steps in the completion records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

from stagger.errors import counted
from stagger.rundir.completion_table import CompletionTable


def models_used(table: CompletionTable) -> list[dict[str, Any]]:
    """Each model that ranks used, as they noted it (`LoadedModel.note`), with the number of `ranks`."""
    ranks: dict[tuple[tuple[str, str], ...], int] = {}
    for notes in filter(None, table.models):
        for note in notes:
            key = tuple(note.items())
            ranks[key] = ranks.get(key, 0) + 1
    return [{**dict(key), "ranks": number} for key, number in ranks.items()]


#: What a model's numbers depend on, by its key in a note -> how a sentence calls it.
MATTERS = {"fingerprint": "versions of its files", "device": "kinds of devices"}

#: Characters of a fingerprint that are shown, as in the documents.
FINGERPRINT = 12


def models_differ(models: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each model of which the ranks used several versions, or which ran on several kinds of devices."""
    sentences = []
    for folder, (key, what) in product(dict.fromkeys(one["model"] for one in models), MATTERS.items()):
        ranks: Counter[str] = Counter()
        for one in models:
            if one["model"] == folder:
                ranks[one[key][:FINGERPRINT] if key == "fingerprint" else one[key]] += one["ranks"]
        if len(ranks) > 1:
            each = ", ".join(f"{value} in {counted(number, 'rank')}" for value, number in ranks.items())
            sentences.append(f"{folder}: {len(ranks)} {what}, whose numbers differ: {each}")
    return sentences
