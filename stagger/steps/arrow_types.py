"""Arrow's and Python's types: which Parquet columns hold which values, and how values are converted."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import orjson

#: Python type -> name of the column type inferred from it.
GUESSED: dict[type, str] = {
    str: "string",
    bool: "bool",
    int: "int64",
    float: "float64",
    datetime.datetime: "timestamp",
    datetime.date: "date32",
}

#: Field metadata that marks a column of strings as JSON.
JSON_MARK = {b"stagger": b"json"}


def is_json(field: Any) -> bool:
    """Whether a column's strings are JSON: marked by WriteParquet, or of Parquet's own JSON type."""
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
    """Whether Arrow's own conversion of this type yields values that JSON has."""
    from pyarrow import types

    if types.is_list(type_) or types.is_large_list(type_) or types.is_dictionary(type_):
        return is_plain(type_.value_type)
    if types.is_struct(type_):
        return all(is_plain(type_.field(index).type) for index in range(type_.num_fields))
    checks = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean, types.is_null)
    return any(check(type_) for check in checks) or types.is_float32(type_) or types.is_float64(type_)


def has_nanoseconds(type_: Any) -> bool:
    """Whether a type holds times or durations in nanoseconds, at any depth."""
    if type_.num_fields:
        return any(has_nanoseconds(type_.field(index).type) for index in range(type_.num_fields))
    return getattr(getattr(type_, "value_type", type_), "unit", "") == "ns"


def in_microseconds(array: Any) -> Any:
    """The array with its nanoseconds cut to microseconds, Python's finest unit.

    Arrow's own cast rounds times before 1970 up, and takes no maps in some versions.
    """
    import pyarrow
    from pyarrow import compute, types

    type_ = array.type
    if not has_nanoseconds(type_):
        return array
    if types.is_dictionary(type_):
        return in_microseconds(array.dictionary_decode())
    if not type_.num_fields:
        return cut(array)
    array = array.take(pyarrow.array(range(len(array)), "int64"))  # A slice's children are not sliced.
    if types.is_struct(type_):
        children = [in_microseconds(array.field(index)) for index in range(type_.num_fields)]
        fields = [type_.field(index).with_type(child.type) for index, child in enumerate(children)]
        return pyarrow.StructArray.from_arrays(children, fields=fields, mask=array.is_null())
    if types.is_fixed_size_list(type_):
        values = in_microseconds(array.values)
        return pyarrow.FixedSizeListArray.from_arrays(values, type_.list_size, mask=array.is_null())
    starts = compute.if_else(array.is_valid(), array.offsets[:-1], None)  # A null offset makes a null list.
    offsets = pyarrow.concat_arrays([starts, array.offsets[-1:]])
    if types.is_map(type_):
        return pyarrow.MapArray.from_arrays(offsets, in_microseconds(array.keys), in_microseconds(array.items))
    return type(array).from_arrays(offsets, in_microseconds(array.values))


def cut(array: Any) -> Any:
    """A flat array in nanoseconds, rounded down to microseconds."""
    import pyarrow
    from pyarrow import compute, types

    whole = compute.divide(array.cast("int64"), 1000)
    rest = compute.subtract(array.cast("int64"), compute.multiply(whole, 1000))
    whole = compute.subtract(whole, compute.less(rest, 0).cast("int64"))
    if types.is_timestamp(array.type):
        return whole.cast(pyarrow.timestamp("us", array.type.tz))
    return whole.cast(pyarrow.duration("us") if types.is_duration(array.type) else pyarrow.time64("us"))


def jsonable(value: Any) -> Any:
    """The value in a form that JSON has. Raises UnicodeDecodeError for binary values that are not UTF-8."""
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
        if value and all(isinstance(item, tuple) for item in value):  # Arrow's form of a map.
            return {str(jsonable(key)): jsonable(item) for key, item in value}
        return [jsonable(item) for item in value]
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    return float(value) if hasattr(value, "__float__") else str(value)


def decoded(value: Any, decode: Callable[[bytes], str | None]) -> Any:
    """The value with its binary values converted by `decode`. A map loses the keys that it makes None."""
    if isinstance(value, bytes):
        return decode(value)
    if isinstance(value, dict):
        return {key: decoded(item, decode) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(decoded(item, decode) for item in value)
    if isinstance(value, list):
        items = [decoded(item, decode) for item in value]
        return [item for item in items if not (isinstance(item, tuple) and item[0] is None)]
    return value


class Json(str):
    """A string of JSON."""

    __slots__ = ()


def array_type(value: Any) -> str | None:
    """The name of the column type for an array of numpy: lists of its numbers, one in another for each dimension; None
    for any other value.
    """
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", ())
    if not shape or dtype is None or dtype.kind not in "biuf":
        return None
    return f"{'list<' * len(shape)}{dtype.name}{'>' * len(shape)}"


def one_type(kinds: set[type]) -> str | None:
    """The name of the type that holds values of all these kinds; None if there is none."""
    if kinds == {int, float}:
        return "float64"
    return GUESSED.get(next(iter(kinds))) if len(kinds) == 1 else None


def named_type(name: str) -> Any:
    """The Arrow type called `name`, also `list<...>` of another one. Raises ValueError if there is none."""
    import pyarrow

    if name.startswith("list<") and name.endswith(">"):
        return pyarrow.list_(named_type(name[5:-1]))

    return pyarrow.timestamp("us", "UTC") if name == "timestamp" else pyarrow.type_for_alias(name)


#: Arrow's own name of a type -> its name in `columns`.
NAMES = {"double": "float64", "float": "float32", "date32[day]": "date32", "timestamp[us, tz=UTC]": "timestamp"}


def column_type(field: Any) -> str:
    """The name of a column's type in `columns`; Arrow's own name, or `list<...>`, for one that has none there."""
    from pyarrow import types

    if field.metadata:
        return "json"
    if types.is_list(field.type):
        return f"list<{column_type(field.type.value_field)}>"
    return NAMES.get(str(field.type), str(field.type))


def python_types(type_: Any) -> set[type] | None:
    """The Python types that a column takes without loss; None to leave it to Arrow, whose own rules turn 1.5 into 1."""
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
    """The values as an Arrow array; strings in columns of dates or times are parsed."""
    import pyarrow
    from pyarrow import types

    if types.is_timestamp(type_):
        values = [timestamp_of(value, type_.tz is not None) for value in values]
    elif types.is_date(type_):
        values = [datetime.date.fromisoformat(value) if isinstance(value, str) else value for value in values]
    elif types.is_list(type_):
        if any(array_type(value) for value in values):
            return lists_of_arrays(values, type_)
        refuse_items(values, python_types(type_.value_type))
    return pyarrow.array(values, type_)


def lists_of_arrays(values: list[Any], type_: Any) -> Any:
    """Arrays of numpy, of one dimension or two, as a column of lists. Raises ValueError for a value of another type."""
    import pyarrow

    for value in values:
        if value is not None and (found := array_type(value)) is not None and named_type(found) != type_:
            raise ValueError(f"it is an array of {value.dtype.name} with {len(value.shape)} dimensions")
    nested = pyarrow.types.is_list(type_.value_type)
    return pyarrow.array([list(value) if nested and value is not None else value for value in values], type_)


def timestamp_of(value: Any, zoned: bool) -> Any:
    """The time in the column's form: in UTC if the column has a zone. A time without a zone counts as UTC."""
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value.removesuffix("Z") + "+00:00" * value.endswith("Z"))
    if value is None or zoned == (value.tzinfo is not None):
        return value
    if zoned:
        return value.replace(tzinfo=datetime.timezone.utc)
    return value.astimezone(datetime.timezone.utc).replace(tzinfo=None)


def refuse_items(values: list[Any], allowed: set[type] | None) -> None:
    """Raise ValueError for an item that a column of lists cannot hold."""
    for value in values:
        if allowed is not None and value is not None and (strange := set(map(type, value)) - allowed):
            raise ValueError(f"an item is {min(kind.__name__ for kind in strange)}")


def kept(value: Any) -> Any:
    """A snapshot of a metadata value: mutable values are copied, and instances of subclasses become their base type."""
    if value is None or type(value) in GUESSED:
        return value
    if isinstance(value, list) and value and not any(isinstance(item, (dict, list, tuple)) for item in value):
        return list(value)
    if isinstance(value, (dict, list, tuple)):
        return json_of(value)
    if array_type(value) is not None:
        return value.copy()
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # A number of numpy.
        return value.item()
    base = next((base for base in (str, float, int) if isinstance(value, base)), None)
    return value if base is None else base(value)


def json_of(value: Any) -> Json:
    if type(value) is Json:
        return value
    try:
        return Json(orjson.dumps(value).decode())
    except TypeError:
        from stagger.steps.exact_json import encoded  # Rarely needed.

        return Json(encoded(value).decode())


def size_of(value: Any) -> int:
    """The approximate size of a value in bytes. Deterministic, because the split into row groups depends on it."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 2 * len(value)
    if isinstance(value, list):
        return 8 + sum(map(size_of, value))
    return 8 + int(getattr(value, "nbytes", 0))


def suggested(value: Any) -> str:
    return array_type(value) or GUESSED.get(type(value), "json")


def type_name(value: Any) -> str:
    if (name := array_type(value)) is not None:
        return f"an array ({name})"
    return "an object or a list" if type(value) is Json else type(value).__name__
