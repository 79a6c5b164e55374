"""JSON that orjson cannot parse or write: big integers, deep nesting, arrays; and why a line is not JSON."""

from __future__ import annotations

import datetime
import json
from typing import Any

import orjson

from stagger.errors import BadInput, BadRecord
from stagger.steps.reader import CR_ONLY

#: Maximum depth of values that are written: orjson parses as much.
MAX_DEPTH = 1024

#: Maximum digits of an integer, Python's own limit.
MAX_DIGITS = 4300


def parsed(line: bytes, first: bool) -> Any:
    """The value of a line, with all integers exact. `first` is whether it is the first line of its file.

    Raises BadRecord when it is not JSON, and BadInput when that concerns the rest of the file too.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(line, error) from error
    try:
        value = json.loads(text, parse_float=finite, parse_constant=refuse_constant)
        encoded(value)  # Half a surrogate pair, which this parser accepts, cannot be written.
    except BadRecord:
        raise
    except (json.JSONDecodeError, TypeError, RecursionError):
        raise not_json(line, text, first) from None
    except ValueError:
        raise BadRecord("json", f"an integer has more than {MAX_DIGITS} digits") from None
    return value


def finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise BadRecord("json", f"the number {digits[:40]} is beyond the range of 64-bit floats")
    return number


def refuse_constant(name: str) -> Any:
    raise BadRecord("nan", f"{name} is not JSON: write null instead, for example with allow_nan=False in Python's json")


def not_utf8(line: bytes, error: UnicodeDecodeError) -> BadInput:
    if not line.endswith(b"\n") and error.end == len(line) and error.reason == "unexpected end of data":
        return BadInput("the last line breaks off within a character: the file is truncated")
    return BadRecord("utf-8", f"not UTF-8: byte {line[error.start]:#04x} at position {error.start} of the record")


def not_json(line: bytes, text: str, first: bool) -> BadInput:
    """The error for a line that is not JSON: for the file, if it is about its end or its line ends."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as found:
        error = found
    else:
        return BadRecord("json", "nested too deep: more than about 900 levels")
    ended = line.endswith(b"\n")
    if not line.strip(b"\0\r\n"):
        return BadInput("the file has zero bytes instead of a record: it was not written to its end")
    if b"\r" in line.strip():
        if first and not ended:
            return BadInput(CR_ONLY)
        return BadRecord("json", "not JSON: a carriage return (CR) stands within the line; lines end with LF or CRLF")
    if line.lstrip().startswith(b"<"):
        reason = f"not JSON, but HTML or XML, perhaps a server's error page: {text.strip()[:40]!r}"
        return BadRecord("json", reason)
    if not ended and error.pos >= len(text):
        return BadInput(f"the last line breaks off: the file is truncated ({error})")
    if not ended and not text.rstrip().endswith("}"):
        return BadInput(f"the last line is not JSON, and has no end: {error}")
    if "depth limit" in error.msg:
        return BadRecord("json", f"nested more than {MAX_DEPTH} deep")
    return BadRecord("json", f"not JSON: {error}")


def plain(value: Any) -> Any:
    """The JSON value for a value of a step's own: a number of numpy, or a time of a class of its own, as of pandas.

    Raises TypeError for anything else.
    """
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat() if value == value else None  # A missing time of pandas.
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind and kind in "biuf" and getattr(value, "shape", None) == ():
        return value.item()
    if kind == "M" and getattr(value, "shape", None) == ():
        return str(value) if value == value else None
    raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")


def is_array(value: Any) -> bool:
    """Whether a value is an array of numpy with numbers: a list, or lists of lists, in JSON."""
    return getattr(getattr(value, "dtype", None), "kind", " ") in "biuf" and bool(getattr(value, "shape", ()))


def array_text(array: Any) -> bytes:
    """An array as JSON, with the shortest digits that its type distinguishes; what is not a number becomes null."""
    return orjson.dumps(array if array.flags.c_contiguous else array.copy(), option=orjson.OPT_SERIALIZE_NUMPY)


class _Token(bytes):
    """JSON text that is ready to be written."""


def encoded(value: Any) -> bytes:
    """The value as JSON in orjson's form, with integers of any size, at any depth up to MAX_DEPTH.

    Raises TypeError for values that JSON does not have.
    """
    written: list[bytes] = []
    depth = 0
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if type(item) is _Token:
            written.append(item)
            depth -= item in (b"]", b"}")
        elif isinstance(item, (dict, list, tuple)):
            depth += 1
            if depth > MAX_DEPTH:
                raise TypeError(f"it is nested more than {MAX_DEPTH} deep")
            written.append(b"{" if isinstance(item, dict) else b"[")
            pending += reversed(members(item))
        elif isinstance(item, int) and not isinstance(item, bool):
            written.append(str(int(item)).encode())
        elif is_array(item):
            written.append(array_text(item))
        else:
            written.append(orjson.dumps(item, default=plain))
    return b"".join(written)


def members(container: Any) -> list[Any]:
    """What is written of a container after its opening bracket: its members, and the tokens between them."""
    items: list[Any] = []
    if isinstance(container, dict):
        for key, item in container.items():
            if not isinstance(key, str):
                raise TypeError("Dict key must be str")
            items += (_Token(b"," * bool(items) + orjson.dumps(key) + b":"), item)
        return [*items, _Token(b"}")]
    for item in container:
        items += (_Token(b","), item) if items else (item,)
    return [*items, _Token(b"]")]
