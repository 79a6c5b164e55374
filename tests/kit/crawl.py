"""The crawl of examples/web_crawl.py, and small models for its languages, trained here: nothing is downloaded."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from web_crawl import BLOCKED_HOST, PARTS, pages, sentence, write_crawl

__all__ = ["BLOCKED_HOST", "in_environment", "models", "pages", "sentence", "train_tokenizer", "write_crawl"]

#: What datatrove names the language model of LanguageFilter in its folder of assets.
LANGUAGE_MODEL = "https:__dl.fbaipublicfiles.com_fasttext_supervised-models_lid.176.bin"

#: C4's list of bad words of a language, as datatrove names it. Some words of the generator stand in for the real ones.
BAD_WORDS = (
    "https:__raw.githubusercontent.com_LDNOOBW_List-of-Dirty-Naughty-Obscene-and-Otherwise-Bad-Words"
    "_25e679f03d96baa721cde20db9944649e8d0a844_en"
)


def models(folder: Path) -> dict[str, str]:
    """Fill a folder with what datatrove would download; returns the environment that makes it look there."""
    from tldextract import TLDExtract

    assets = folder / "assets" / "datatrove"
    for path in (assets / "lid" / "ft176" / LANGUAGE_MODEL, assets / "filters" / "c4_badwords" / BAD_WORDS):
        path.parent.mkdir(parents=True)
        (path.parent / f"{path.name}.completed").touch()
    train_language_model(assets / "lid" / "ft176" / LANGUAGE_MODEL)
    (assets / "filters" / "c4_badwords" / BAD_WORDS).write_text("coal mine\nlighthouse\n")
    variables = {"HF_ASSETS_CACHE": str(folder / "assets"), "TLDEXTRACT_CACHE": str(folder / "suffixes")}
    with in_environment(variables):
        TLDExtract(cache_dir=variables["TLDEXTRACT_CACHE"])("example.com")  # Keeps the list that it came with.
    return {**variables, "HF_HUB_OFFLINE": "1"}


def train_language_model(path: Path) -> None:
    """A fastText model that names the language of the generator's sentences."""
    import fasttext

    draw = random.Random(1)
    lines = [f"__label__{language} {sentence(draw, language)}" for language in PARTS for _ in range(150)]
    draw.shuffle(lines)
    text = path.parent / "sentences.txt"
    text.write_text("\n".join(lines) + "\n")
    # Ten threads: each fills a tenth of the model with its first values, and with fewer the rest is what memory held.
    model = fasttext.train_supervised(
        str(text), dim=8, epoch=20, lr=0.1, minn=2, maxn=3, bucket=5000, thread=10, verbose=0
    )
    model.save_model(str(path))


def train_tokenizer(path: Path) -> None:
    """A tokenizer of a thousand tokens, trained on the generator's English."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    draw = random.Random(2)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=["<unk>", "<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator((sentence(draw, "en") for _ in range(500)), trainer)
    tokenizer.save(str(path))


@contextmanager
def in_environment(variables: dict[str, str]) -> Iterator[None]:
    """Let this process and those that it starts look for models where `models` has put them."""
    import huggingface_hub.utils._cache_assets as assets
    from tldextract.suffix_list import SuffixListNotFound

    def no_download(*_: object, **__: object) -> str:
        raise SuffixListNotFound("tests download nothing")

    with (
        mock.patch.dict("os.environ", variables),
        mock.patch.object(assets, "HF_ASSETS_CACHE", variables["HF_ASSETS_CACHE"]),
        mock.patch("tldextract.suffix_list.find_first_response", no_download),
    ):
        yield
