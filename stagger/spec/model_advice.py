"""What a message says where a path names no model. Imports no pydantic: tasks use it."""

from __future__ import annotations

from stagger.storage.storage import is_local


def advice(folder: str) -> str:
    """What to do where a model's folder holds none."""
    what = "A model is a folder with config.json, *.safetensors and tokenizer.json, local or on S3"
    if not is_local(folder):
        return f"{what}."
    name = "/".join(folder.strip("/").split("/")[-2:])
    return f"{what}; for one of the Hugging Face Hub, download it first: hf download {name} --local-dir FOLDER."
