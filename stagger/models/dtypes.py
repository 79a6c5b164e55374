"""The types of the numbers of models. Imports no torch: a launch need not have it."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args


class NumberType(NamedTuple):
    """How safetensors files name a type (https://github.com/huggingface/safetensors#format), and bytes of a number."""

    stored_as: str
    bytes: int


#: Name in torch -> the type.
NUMBER_TYPES = {
    "float64": NumberType("F64", 8),
    "float32": NumberType("F32", 4),
    "float16": NumberType("F16", 2),
    "bfloat16": NumberType("BF16", 2),
    "int64": NumberType("I64", 8),
    "int32": NumberType("I32", 4),
    "int16": NumberType("I16", 2),
    "int8": NumberType("I8", 1),
    "uint8": NumberType("U8", 1),
    "bool": NumberType("BOOL", 1),
}

#: A type that models are run in, as pipeline files and config.json name it.
ComputingDtype = Literal["bfloat16", "float16", "float32"]
COMPUTING: tuple[str, ...] = get_args(ComputingDtype)
