"""What datatrove's blocks load once, at their first document, and never change."""

from __future__ import annotations

from typing import Any

from stagger.datatrove.state import name_of

#: Block -> the attributes that depend on nothing but its parameters (`kept` in stagger/pipeline/hooks.py).
KEPT_BY_BLOCKS = {
    "datatrove.pipeline.filters.c4_filters:C4BadWordsFilter": ("_badwords_regex",),
    "datatrove.pipeline.filters.fasttext_filter:FastTextClassifierFilter": ("_model",),
    "datatrove.pipeline.filters.language_filter:LanguageFilter": ("model",),
    "datatrove.pipeline.filters.url_filter:URLFilter": (
        "_downloaded",
        "banned_subwords",
        "banned_subwords_automaton",
        "banned_words",
        "block_listed_domains",
        "block_listed_url",
        "soft_banned_words",
        "tldextractor",
    ),
    "datatrove.pipeline.tokens.counter:TokensCounter": ("tokenizer",),
}


def kept_by_block(step: Any) -> tuple[str, ...]:
    """The attributes of a step that may be handed on; none if it is no such block."""
    return KEPT_BY_BLOCKS.get(name_of(step), ())
