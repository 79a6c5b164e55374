"""What datatrove's blocks load is handed on from rank to rank, and no document changes it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

pytest.importorskip("datatrove")

from datatrove.data import Document
from datatrove.pipeline.filters import URLFilter

from stagger.datatrove.kept import KEPT_BY_BLOCKS, kept_by_block
from stagger.task.making_steps import hand_on, take_over

URLS = [
    "https://example.org/a",
    "https://porn.example.org/xxx",
    "http://casino-bonus.net/sex",
    "https://python.org/doc",
]


def filtered(block: Any) -> list[str]:
    data = [Document(text="t", id=str(n), metadata={"url": url}) for n, url in enumerate(URLS)]
    return [document.id for document in block.run(iter(data), 0, 1)]


def state(block: URLFilter) -> dict[str, Any]:
    """Copies of the lists of a filter."""
    names = kept_by_block(block)
    lists = {name: set(getattr(block, name)) for name in names if isinstance(getattr(block, name), set)}
    return {**lists, "automaton": sorted(block.banned_subwords_automaton.items())}


def test_every_block_of_the_table_exists() -> None:
    for name in KEPT_BY_BLOCKS:
        module, _, kind = name.partition(":")
        assert hasattr(importlib.import_module(module), kind)


def test_a_url_filter_loads_its_lists_once_and_filters_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {"extra_domains": ["porn.example.org"], "banned_words": ["sex"], "banned_subwords": ["casino"]}
    first = URLFilter(**lists, use_integrated_lists=False)
    kept = filtered(first)
    before = state(first)
    first._downloaded = True
    hand_on("plan", [first])
    second = URLFilter(**lists)
    take_over("plan", [second])
    assert second._downloaded
    assert filtered(second) == kept == ["0", "3"]
    assert state(second) == before
