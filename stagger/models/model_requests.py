"""Counts the requests to remote storage that open a model. Imports no torch: a launch need not have it."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from stagger.models.model_folder import FIRST_BYTES, INDEX, SINGLE
from stagger.models.model_json import LENGTH_BYTES
from stagger.models.settings import Settings
from stagger.models.tokenizer_folder import FILES
from stagger.storage.storage import Storage, connections_to, is_local, join

#: Of a checkpoint: config.json, and the listing of its folder. A step reads config.json once more.
FOLDER_REQUESTS, STEP_REQUESTS = 2, 1


def start_requests(storage: Storage, settings: Settings) -> int:
    """The requests of a process that opens a model and its tokenizer, before it reads weights. 0 if both are local."""
    tokenizer = 0 if is_local(settings.tokenizer) else len(FILES)
    return tokenizer + (0 if is_local(settings.model) else STEP_REQUESTS + checkpoint_requests(storage, settings.model))


def checkpoint_requests(storage: Storage, folder: str) -> int:
    """Those for config.json, the listing, the index, and the header of each weights file."""
    files = {entry.name for entry in storage.list(folder)}
    weights = [SINGLE] if SINGLE in files else sorted(name for name in files if name.endswith(".safetensors"))
    with ThreadPoolExecutor(connections_to(folder)) as threads:
        headers = sum(threads.map(partial(header_requests, storage), [join(folder, name) for name in weights]))
    return FOLDER_REQUESTS + (SINGLE not in files and INDEX in files) + headers


def header_requests(storage: Storage, path: str) -> int:
    """2 for a header that is longer than what is read first."""
    start = storage.read_range(path, 0, LENGTH_BYTES)
    return 1 + (len(start) == LENGTH_BYTES and LENGTH_BYTES + struct.unpack("<Q", start)[0] > FIRST_BYTES)
