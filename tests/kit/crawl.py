"""The generated crawl of examples/web_crawl.py, and small models for its languages, trained here: nothing is downloaded."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from web_crawl import BLOCKED_HOST, PARTS, pages, sentence, write_crawl

__all__ = ["BLOCKED_HOST", "models", "no_downloads", "pages", "sentence", "train_tokenizer", "write_crawl"]

#: What datatrove names the language model of LanguageFilter in its folder of assets.
LANGUAGE_MODEL = "https:__dl.fbaipublicfiles.com_fasttext_supervised-models_lid.176.bin"

#: C4's list of bad words of a language, as datatrove names it. Some words of the generator stand in for the real ones.
BAD_WORDS = "https:__raw.githubusercontent.com_LDNOOBW_List-of-Dirty-Naughty-Obscene-and-Otherwise-Bad-Words_25e679f03d96baa721cde20db9944649e8d0a844_en"


def models(folder: Path) -> dict[str, str]:
    """Fill a folder with what datatrove would download; returns the environment that makes it look there."""
    languages = folder / "assets" / "datatrove" / "lid" / "ft176"
    languages.mkdir(parents=True)
    train_language_model(languages / LANGUAGE_MODEL)
    (languages / f"{LANGUAGE_MODEL}.completed").touch()
    return {"HF_ASSETS_CACHE": str(folder / "assets"), "TLDEXTRACT_CACHE": str(folder / "suffixes"), "HF_HUB_OFFLINE": "1"}


def train_language_model(path: Path) -> None:
    """A fastText model that names the language of the generator's sentences."""
    import fasttext

    draw = random.Random(1)
    lines = [f"__label__{language} {sentence(draw, language)}" for language in PARTS for _ in range(150)]
    draw.shuffle(lines)
    text = path.parent / "sentences.txt"
    text.write_text("\n".join(lines) + "\n")
    model = fasttext.train_supervised(
        str(text), dim=8, epoch=10, lr=0.5, minn=2, maxn=3, bucket=5000, thread=1, verbose=0
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
