"""The tokenizer of a model: texts to tokens, as transformers' own class of the tokenizer makes them."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy
import transformers

from stagger.errors import StaggerError
from stagger.models.model_json import refuse_pointer
from stagger.models.tokenizer_folder import FILES, NEEDED, no_tokenizer
from stagger.storage.storage import Storage, join


class Tokenizer:
    """Texts to tokens, with the special tokens that the tokenizer adds.

    size: one more than the largest token that it knows.
    """

    def __init__(self, made: Any) -> None:
        self._made = made
        self.size = len(made)

    @classmethod
    def open(cls, storage: Storage, folder: str) -> Tokenizer:
        """The tokenizer in a folder, local or remote. Raises StaggerError when there is none, or it is damaged."""
        contents = dict(zip(FILES, storage.read_many([join(folder, name) for name in FILES]), strict=True))
        needed = contents[NEEDED]
        if needed is None:
            raise no_tokenizer(folder)
        refuse_pointer(join(folder, NEEDED), needed)
        with tempfile.TemporaryDirectory() as copy:
            for name, content in contents.items():
                if content is not None:
                    with open(os.path.join(copy, name), "wb") as file:
                        file.write(content)
            try:
                made = transformers.AutoTokenizer.from_pretrained(copy, trust_remote_code=False, local_files_only=True)
            except Exception as error:  # Classes of tokenizers check their files in their own ways.
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(copy, folder)
                raise StaggerError(
                    f"{folder}: transformers {transformers.__version__} cannot make the tokenizer: {reason[:300]}"
                ) from error
        return cls(made)

    def __call__(self, text: str) -> numpy.ndarray[Any, numpy.dtype[numpy.int64]]:
        """The tokens of a text. Raises UnicodeError for one that is not valid Unicode: half a surrogate pair."""
        text.encode()
        return numpy.array(self._made(text, verbose=False).input_ids, dtype=numpy.int64)
