"""Which steps may be called once for each shard of a rank, because they keep nothing from one call to the next."""

from __future__ import annotations

from typing import Any

from stagger.datatrove.block_outputs import writes
from stagger.pipeline.hooks import Reader, Writer, is_stateless

#: datatrove's blocks, by the last module that defines them, whose result for a document depends on this document alone.
#: Not among them: blocks that draw random numbers (SamplerFilter, C4BadWordsFilter), that rotate (PIIFormatter), that
#: remember (Trafilatura with `deduplicate`), that number documents (the deduplication), and those that write.
STATELESS_BLOCKS = frozenset(
    {
        "datatrove.pipeline.filters.c4_filters:C4ParagraphFilter",
        "datatrove.pipeline.filters.c4_filters:C4QualityFilter",
        "datatrove.pipeline.filters.fasttext_filter:FastTextClassifierFilter",
        "datatrove.pipeline.filters.fineweb_quality_filter:FineWebQualityFilter",
        "datatrove.pipeline.filters.gopher_quality_filter:GopherQualityFilter",
        "datatrove.pipeline.filters.gopher_repetition_filter:GopherRepetitionFilter",
        "datatrove.pipeline.filters.language_filter:LanguageFilter",
        "datatrove.pipeline.filters.regex_filter:RegexFilter",
        "datatrove.pipeline.filters.unigram_log_probs:UnigramLogProbFilter",
        "datatrove.pipeline.filters.url_filter:URLFilter",
        "datatrove.pipeline.formatters.ftfy:FTFYFormatter",
        "datatrove.pipeline.formatters.symbol_lines_remover:SymbolLinesFormatter",
        "datatrove.pipeline.tokens.counter:LengthCounter",
        "datatrove.pipeline.tokens.counter:TokensCounter",
    }
)


#: The block whose `filter_function` is the user's.
CALLS_A_FUNCTION = "datatrove.pipeline.filters.lambda_filter:LambdaFilter"


def repeatable(step: Any, *, declared: bool = False) -> bool:
    """Whether a step may be called once for each shard of a rank, and not once for all of them.

    True for readers and writers with stagger's hooks, for steps that are `stateless` (`declared`: in the pipeline
    file), and for blocks known to be. A block that writes files opens them anew in each call, whatever is declared.
    """
    if isinstance(step, (Reader, Writer)):
        return True
    return not writes(step) and (declared or is_stateless(step) or _is_known(step))


def _is_known(step: Any) -> bool:
    """Whether a step is a block of datatrove that keeps nothing, or that calls a function which does not."""
    name = name_of(step)
    return name in STATELESS_BLOCKS or (
        name == CALLS_A_FUNCTION and is_stateless(getattr(step, "filter_function", None))
    )


def name_of(step: Any) -> str:
    """`module:Class` of a step, or of a class."""
    kind = step if isinstance(step, type) else type(step)
    return f"{kind.__module__}:{kind.__qualname__}"
