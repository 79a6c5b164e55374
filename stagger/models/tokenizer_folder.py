"""The files of a tokenizer. Imports no torch: a launch need not have it."""

from __future__ import annotations

from stagger.errors import StaggerError
from stagger.storage.storage import Storage, join

#: The file that holds a whole fast tokenizer.
NEEDED = "tokenizer.json"

#: What transformers reads to make one: which class it has, and its special tokens.
FILES = (NEEDED, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


def check_tokenizer(storage: Storage, folder: str) -> None:
    """Raise StaggerError when a folder holds no fast tokenizer."""
    if storage.entry(join(folder, NEEDED)) is None:
        raise no_tokenizer(folder)


def no_tokenizer(folder: str) -> StaggerError:
    return StaggerError(
        f"{folder}: there is no tokenizer.json; give tokenizer a folder that has one. A tokenizer of older files is"
        " converted once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
    )
