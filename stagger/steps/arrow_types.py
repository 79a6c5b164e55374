"""Arrow's types and Python's: what Parquet columns hold, and how values are converted."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import orjson

#: The types that a column may get by its values.
GUESSED: dict[type, str] = {
    str: "string",
    bool: "bool",
    int: "int64",
    float: "float64",
    datetime.datetime: "timestamp",
    datetime.date: "date32",
}

#: What marks a column of strings that hold JSON.
JSON_MARK = {b"stagger": b"json"}


def is_json(field: Any) -> bool:
    """Whether a column's strings are JSON: as WriteParquet marks them, or by Parquet's type for it."""
    marked = (field.metadata or {}).get(b"stagger") == JSON_MARK[b"stagger"]
    return marked or str(getattr(field.type, "extension_name", "")) == "arrow.json"


def is_text(type_: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(type_):
        return is_text(type_.value_type)
    if any(check(type_) for check in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)):
        return True
    return str(type_) in ("string_view", "binary_view")


def is_plain(type_: Any) -> bool:
    """Whether Arrow's own conversion of a type gives what JSON has."""
    from pyarrow import types

    if types.is_list(type_) or types.is_large_list(type_) or types.is_dictionary(type_):
        return is_plain(type_.value_type)
    if types.is_struct(type_):
        return all(is_plain(type_.field(index).type) for index in range(type_.num_fields))
    checks = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean, types.is_null)
    return any(check(type_) for check in checks) or types.is_float32(type_) or types.is_float64(type_)


def without_nanoseconds(type_: Any) -> Any:
    """The type with microseconds, which are Python's limit, in place of nanoseconds."""
    import pyarrow
    from pyarrow import types

    if types.is_list(type_):
        return pyarrow.list_(type_.value_field.with_type(without_nanoseconds(type_.value_type)))
    if types.is_struct(type_):
        fields = [type_.field(index) for index in range(type_.num_fields)]
        return pyarrow.struct([field.with_type(without_nanoseconds(field.type)) for field in fields])
    if getattr(type_, "unit", "") != "ns":
        return type_
    if types.is_timestamp(type_):
        return pyarrow.timestamp("us", type_.tz)
    return pyarrow.duration("us") if types.is_duration(type_) else pyarrow.time64("us")


def jsonable(value: Any) -> Any:
    """A value as JSON has it. Raises UnicodeDecodeError for binary values that are not UTF-8."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) for item in value):  # So Arrow gives a map.
            return {str(jsonable(key)): jsonable(item) for key, item in value}
        return [jsonable(item) for item in value]
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    return float(value) if hasattr(value, "__float__") else str(value)


class Json(str):
    """A value that is written as JSON."""

    __slots__ = ()


def one_type(kinds: set[type]) -> str | None:
    """The name of the type that values of all these kinds fit into."""
    if kinds == {int, float}:
        return "float64"
    return GUESSED.get(next(iter(kinds))) if len(kinds) == 1 else None


def named_type(name: str) -> Any:
    """Arrow's type of this name. Raises ValueError."""
    import pyarrow

    return pyarrow.timestamp("us", "UTC") if name == "timestamp" else pyarrow.type_for_alias(name)


def python_types(type_: Any) -> set[type] | None:
    """What a column takes without a loss, beside None; None where Arrow decides. Its own rules turn 1.5 into 1."""
    from pyarrow import types

    if types.is_integer(type_):
        return {int, type(None)}
    if types.is_floating(type_):
        return {int, float, type(None)}
    if types.is_boolean(type_):
        return {bool, type(None)}
    if types.is_string(type_) or types.is_large_string(type_):
        return {str, type(None)}
    if types.is_timestamp(type_):
        return {datetime.datetime, str, type(None)}
    if types.is_date(type_):
        return {datetime.date, str, type(None)}
    return None


def converted(values: list[Any], type_: Any) -> Any:
    """The values as an Arrow array; strings of dates and times are parsed."""
    import pyarrow
    from pyarrow import types

    if types.is_timestamp(type_):
        values = [timestamp_of(value, type_.tz is not None) for value in values]
    elif types.is_date(type_):
        values = [datetime.date.fromisoformat(value) if isinstance(value, str) else value for value in values]
    elif types.is_list(type_):
        refuse_items(values, python_types(type_.value_type))
    return pyarrow.array(values, type_)


def timestamp_of(value: Any, zoned: bool) -> Any:
    """A time, in UTC where the column has a zone: one that says none is taken for UTC."""
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value.removesuffix("Z") + "+00:00" * value.endswith("Z"))
    if value is None or zoned == (value.tzinfo is not None):
        return value
    if zoned:
        return value.replace(tzinfo=datetime.timezone.utc)
    return value.astimezone(datetime.timezone.utc).replace(tzinfo=None)


def refuse_items(values: list[Any], allowed: set[type] | None) -> None:
    """Raise ValueError for an item that a column of lists does not take."""
    for value in values:
        if allowed is not None and value is not None and (strange := set(map(type, value)) - allowed):
            raise ValueError(f"an item is {min(kind.__name__ for kind in strange)}")


def kept(value: Any) -> Any:
    """A value of the metadata as it is now: what may change later is copied, and a subclass is its base."""
    if value is None or type(value) in GUESSED:
        return value
    if isinstance(value, list) and value and not any(isinstance(item, (dict, list, tuple)) for item in value):
        return list(value)
    if isinstance(value, (dict, list, tuple)):
        return json_of(value)
    base = next((base for base in (str, float, int) if isinstance(value, base)), None)
    return value if base is None else base(value)


def json_of(value: Any) -> Json:
    return value if type(value) is Json else Json(orjson.dumps(value).decode())


def size_of(value: Any) -> int:
    """About how many bytes a value is; always the same, as the division into row groups follows from it."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 2 * len(value)
    return 8 + sum(map(size_of, value)) if isinstance(value, list) else 8


def suggested(value: Any) -> str:
    return GUESSED.get(type(value), "json")


def type_name(value: Any) -> str:
    return "an object or a list" if type(value) is Json else type(value).__name__
