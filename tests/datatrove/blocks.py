"""Every block of datatrove that needs no download, in pipelines that both tools run.

Not here, because they need a download or a program: ReadabilityInscriptis (a package that is in no registry),
UnigramLogProbFilter, CCNetPerplexityStats (models), NGramsDecont (lighteval), exact substrings (a Rust program),
inference, and the blocks that talk to the Hugging Face Hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document

from stagger import stateless
from tests.datatrove.both import Function, Object, Stage
from tests.kit.crawl import BLOCKED_HOST

FILTERS = "datatrove.pipeline.filters:"
FORMATTERS = "datatrove.pipeline.formatters:"
READERS = "datatrove.pipeline.readers:"
STATS = "datatrove.pipeline.stats:"
TOKENS = "datatrove.pipeline.tokens:"
WRITERS = "datatrove.pipeline.writers:"
DEDUP = "datatrove.pipeline.dedup:"
MINHASH = "datatrove.pipeline.dedup.minhash:"

Step = tuple[str, dict[str, Any]]

READ: Step = ("read", {"path": "@in/documents"})
WRITE: Step = ("write", {"path": "@out/documents"})

#: Ranks of stages that read documents.
TASKS = 2


def long(document: Document) -> bool:
    return len(document.text) > 1500


@stateless
def fail_once(
    data: Iterable[Document], rank: int, world_size: int, *, document_id: str, flag: str
) -> Iterator[Document]:
    """Raise at a document, unless that has happened before."""
    for document in data:
        if document.id == document_id and not Path(flag).exists():
            Path(flag).touch()
            raise RuntimeError("once")
        yield document


def host_of(document: Document) -> str:
    return f"{document.metadata['url'].split('/')[2]} {document.text[:20]}"


def priority(document: Document) -> int:
    return 1 + len(document.text) % 100


def between(use: str, **params: Any) -> tuple[Stage, ...]:
    """One stage: read, a block, write."""
    return (Stage(TASKS, (READ, (use, params), WRITE)),)


def removed(name: str = "removed") -> Object:
    """An exclusion writer."""
    return Object(WRITERS + "JsonlWriter", {"output_folder": f"@out/{name}", "output_filename": "${rank}.jsonl.gz"})


def reading(use: str, folder: str, **params: Any) -> tuple[Stage, ...]:
    """One stage whose reader is datatrove's."""
    return (Stage(TASKS, ((READERS + use, {"data_folder": f"@in/{folder}", **params}), WRITE)),)


TOKENIZER = {"tokenizer_name_or_path": "@in/tokenizer.json"}

FILTER_CASES: dict[str, tuple[Stage, ...]] = {
    "C4Quality": between(FILTERS + "C4QualityFilter", exclusion_writer=removed()),
    "C4Quality-sentences": between(FILTERS + "C4QualityFilter", split_paragraph=False, filter_no_terminal_punct=False),
    "C4Paragraph": between(FILTERS + "C4ParagraphFilter"),
    "C4BadWords": between(FILTERS + "C4BadWordsFilter", keep_fraction=0.5, seed=1, exclusion_writer=removed()),
    "FineWebQuality": between(FILTERS + "FineWebQualityFilter"),
    "GopherQuality": between(FILTERS + "GopherQualityFilter", min_doc_words=60, exclusion_writer=removed()),
    "GopherRepetition": between(FILTERS + "GopherRepetitionFilter"),
    "Language": between(FILTERS + "LanguageFilter", languages="en", exclusion_writer=removed()),
    "Language-label-only": between(FILTERS + "LanguageFilter", label_only=True, keep_top_pairs_threshold=0.1),
    "Lambda": between(FILTERS + "LambdaFilter", filter_function=Function("tests.datatrove.blocks:long")),
    "FastTextClassifier": between(
        FILTERS + "FastTextClassifierFilter", model_url="@in/language_model.bin", keep_labels=["en", 0.5]
    ),
    "Regex": between(FILTERS + "RegexFilter", regex_exp="[Ll]orem ipsum", exclusion_writer=removed()),
    "Sampler": between(FILTERS + "SamplerFilter", rate=0.5, seed=7),
    "URL": between(
        FILTERS + "URLFilter",
        use_integrated_lists=False,
        extra_domains=[BLOCKED_HOST],
        banned_subwords=["porn"],
        exclusion_writer=removed(),
    ),
}

FORMATTER_CASES: dict[str, tuple[Stage, ...]] = {
    "FTFY": between(FORMATTERS + "FTFYFormatter"),
    "PII": between(FORMATTERS + "PIIFormatter"),
    "SymbolLines": between(FORMATTERS + "SymbolLinesFormatter", symbols_to_remove=["●"]),
    "Trafilatura": (
        Stage(
            TASKS,
            (
                (READERS + "WarcReader", {"data_folder": "@in/crawl", "default_metadata": {"dump": "D1"}}),
                ("datatrove.pipeline.extractors:Trafilatura", {"timeout": 60}),
                WRITE,
            ),
        ),
    ),
}

READER_CASES: dict[str, tuple[Stage, ...]] = {
    "JsonlReader": reading("JsonlReader", "documents", skip=2, limit=9),
    "ParquetReader": reading("ParquetReader", "parquet", default_metadata={"dump": "D1"}),
    "CSVReader": reading("CSVReader", "csv"),
    "IpcReader": reading("IpcReader", "ipc"),
    "WarcReader": reading("WarcReader", "crawl"),
    "HuggingFaceDatasetReader": (
        Stage(
            TASKS, ((READERS + "HuggingFaceDatasetReader", {"dataset": "@in/dataset", "load_from_disk": True}), WRITE)
        ),
    ),
}

WRITER_CASES: dict[str, tuple[Stage, ...]] = {
    "JsonlWriter": (Stage(TASKS, (READ, (WRITERS + "JsonlWriter", {"output_folder": "@out/documents"}))),),
    "JsonlWriter-in-between": between(
        WRITERS + "JsonlWriter", output_folder="@out/between", output_filename="${rank}.jsonl", compression=None
    ),
    "JsonlWriter-by-metadata": (
        Stage(
            TASKS,
            (
                READ,
                (FILTERS + "LanguageFilter", {"label_only": True}),
                (WRITERS + "JsonlWriter", {"output_folder": "@out", "output_filename": "${language}/${rank}.jsonl.gz"}),
            ),
        ),
    ),
    "JsonlWriter-parts": between(WRITERS + "JsonlWriter", output_folder="@out/between", max_file_size=20_000),
    "ParquetWriter": (Stage(TASKS, (READ, (WRITERS + "ParquetWriter", {"output_folder": "@out/documents"}))),),
    "ParquetWriter-in-between": between(WRITERS + "ParquetWriter", output_folder="@out/between", batch_size=5),
}


def statistics(use: str, **params: Any) -> tuple[Stage, ...]:
    """A block of statistics, and the merger of what its ranks wrote."""
    folders = {"input_folder": "@out/statistics", "output_folder": "@out/merged"}
    return (
        Stage(TASKS, (READ, (STATS + use, {"output_folder": "@out/statistics", **params}))),
        Stage(1, ((STATS + "StatsMerger", folders),)),
    )


STATISTICS_CASES: dict[str, tuple[Stage, ...]] = {
    "DocStats": statistics("DocStats"),
    "LangStats": statistics("LangStats", language="en"),
    "LineStats": statistics("LineStats"),
    "ParagraphStats": statistics("ParagraphStats"),
    "SentenceStats": statistics("SentenceStats"),
    "TokenStats": statistics("TokenStats", **TOKENIZER),
    "WordStats": statistics("WordStats"),
    "WordsContaminationStats": statistics("WordsContaminationStats", words=["garden", "river"]),
}

TOKEN_CASES: dict[str, tuple[Stage, ...]] = {
    "TokensCounter": between(TOKENS + "TokensCounter", **TOKENIZER),
    "LengthCounter": (
        Stage(TASKS, (READ, (TOKENS + "TokensCounter", TOKENIZER), (TOKENS + "LengthCounter", {}), WRITE)),
    ),
    "DocumentTokenizer": (
        Stage(
            TASKS,
            (
                READ,
                (
                    TOKENS + "DocumentTokenizer",
                    {
                        "output_folder": "@out/tokens",
                        "local_working_dir": "@out/scratch",
                        "eos_token": "<|endoftext|>",
                        "seed": 3,
                        **TOKENIZER,
                    },
                ),
            ),
        ),
        Stage(
            1,
            (
                (
                    TOKENS + "DocumentTokenizerMerger",
                    {"input_folder": "@out/tokens", "output_folder": "@out/merged", "save_filename": "all", "seed": 4},
                ),
            ),
        ),
        Stage(
            1,
            (
                (
                    "datatrove.pipeline.tokens.context_shuffler:DocumentTokenizerContextShuffler",
                    {"input_folder": "@out/merged", "output_folder": "@out/shuffled", "window_size": 65, "seed": 5},
                ),
            ),
        ),
    ),
    "MegatronDocumentTokenizer": (
        Stage(TASKS, (READ, (TOKENS + "MegatronDocumentTokenizer", {"output_folder": "@out/tokens", **TOKENIZER}))),
    ),
}

MINHASH_CONFIG = Object(
    MINHASH + "MinhashConfig",
    {
        "num_buckets": 4,
        "hashes_per_bucket": 3,
        "hash_config": Object("datatrove.utils.hashing:HashConfig", {"precision": 64}),
    },
)
SENTENCE_CONFIG = Object("datatrove.pipeline.dedup.sentence_dedup:SentDedupConfig", {"n_sentences": 2})
EXACT_CONFIG = Object(
    "datatrove.pipeline.dedup.exact_dedup:ExactDedupConfig",
    {
        "content_getter": Function("tests.datatrove.blocks:host_of"),
        "document_priority": Function("tests.datatrove.blocks:priority"),
    },
)


def three_stages(prefix: str, find: str, config: Object) -> tuple[Stage, ...]:
    """Signatures, their duplicates, and the documents without them."""
    return (
        Stage(
            TASKS,
            (READ, (DEDUP + prefix + "Signature", {"output_folder": "@out/1", "finder_workers": 2, "config": config})),
        ),
        Stage(2, ((DEDUP + find, {"data_folder": "@out/1", "output_folder": "@out/2", "config": config}),)),
        Stage(
            TASKS,
            (
                READ,
                (DEDUP + prefix + "Filter", {"data_folder": "@out/2", "config": config, "exclusion_writer": removed()}),
                WRITE,
            ),
        ),
    )


DEDUP_CASES: dict[str, tuple[Stage, ...]] = {
    "Minhash": (
        Stage(
            TASKS, (READ, (MINHASH + "MinhashDedupSignature", {"output_folder": "@out/1", "config": MINHASH_CONFIG}))
        ),
        Stage(
            8,
            (
                (
                    MINHASH + "MinhashDedupBuckets",
                    {"input_folder": "@out/1", "output_folder": "@out/2", "config": MINHASH_CONFIG},
                ),
            ),
        ),
        Stage(
            1,
            (
                (
                    MINHASH + "MinhashDedupCluster",
                    {
                        "input_folder": "@out/2",
                        "output_folder": "@out/3",
                        "config": MINHASH_CONFIG,
                        "save_cluster_id": True,
                        "save_cluster_size": True,
                    },
                ),
            ),
        ),
        Stage(
            TASKS,
            (
                READ,
                (MINHASH + "MinhashDedupFilter", {"input_folder": "@out/3", "exclusion_writer": removed()}),
                WRITE,
            ),
        ),
        Stage(
            4,
            (
                (
                    MINHASH + "MinhashBuildIndex",
                    {
                        "input_folder": "@out/1",
                        "output_folder": "@out/index",
                        "index_name": "first",
                        "config": MINHASH_CONFIG,
                    },
                ),
            ),
        ),
    ),
    "Sentence": three_stages("SentenceDedup", "SentenceFindDedups", SENTENCE_CONFIG),
    "Exact": three_stages("ExactDedup", "ExactFindDedups", EXACT_CONFIG),
    "SingleBloomFilter": between(
        DEDUP + "SingleBloomFilter",
        output_folder="@out/bloom",
        config=Object("datatrove.pipeline.dedup.bloom_filter:BloomFilterConfig", {"m_bytes": 2**16, "k": 5}),
        exclusion_writer=removed(),
    ),
}

CASES = {
    **FILTER_CASES,
    **FORMATTER_CASES,
    **READER_CASES,
    **WRITER_CASES,
    **STATISTICS_CASES,
    **TOKEN_CASES,
    **DEDUP_CASES,
}


def read_by_stagger(stages: tuple[Stage, ...]) -> bool:
    """Whether stagger's reader and writer are in the same stage, in all stages that have one of them."""
    return any(stage.steps[0] == READ and stage.steps[-1] == WRITE for stage in stages)
