"""`vars` of a pipeline file: named values, which `${vars.NAME}` stands for anywhere in the file.

A value that is `${vars.NAME}` alone becomes the variable's value, of any type. Within a text it is replaced by text. As
with environment variables, `$${` is a plain `${`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagger.errors import StaggerError, plural
from stagger.spec.expected import described
from stagger.spec.nearest import nearest
from stagger.spec.place import Place
from stagger.spec.secret_check import BY_REFERENCE, check_secrets
from stagger.spec.yaml_file import MAX_CHARACTERS, MAX_VALUES, Path
from stagger.terminal import logger

KEY = "vars"

#: How a reference begins, after `${`.
PREFIX = "vars."


def with_variables(raw: Mapping[str, Any], place: Place, *, warn: bool = True) -> dict[str, Any]:
    """A file's content without `vars`, with the references to them replaced.

    `warn`: log a warning of variables that nothing uses. Raises StaggerError for a reference to an unknown variable,
    and for a variable that cannot be used in a text, stands for itself, or holds a secret in clear text.
    """
    written = raw.get(KEY, {})
    if not isinstance(written, Mapping):
        raise StaggerError(f"{place.of((KEY,))}: expected a mapping of names and values, not {described(written)}.")
    for name in written:
        if not name.isidentifier():
            raise StaggerError(
                f"{place.of((KEY, name))}: the name of a variable consists of letters, digits and _; rename it."
            )
    check_secrets(written, place, (KEY,), BY_REFERENCE)
    variables = Variables(written, place)
    content = {key: variables.replaced(value, (key,)) for key, value in raw.items() if key != KEY}
    unused = [name for name in written if name not in variables.values and not _has_alias(name, place)]
    if unused and warn:
        logger.warning(
            f"{place.of((KEY, unused[0]))}: nothing uses the {plural(len(unused), 'variable')} {', '.join(unused)};"
            f" write ${{{PREFIX}{unused[0]}}} where it belongs, or remove it"
        )
    return content


def _has_alias(name: str, place: Place) -> bool:
    """Whether an alias of YAML (`*name`) stands for the variable, or for a part of it."""
    return any(path[:2] == (KEY, name) for path in place.shared)


class Variables:
    """The variables of a file, and the values of those that are in use."""

    def __init__(self, written: Mapping[str, Any], place: Place) -> None:
        self.written = written
        self.place = place
        self.values: dict[str, Any] = {}
        self._open: list[str] = []
        self._count = 0

    def replaced(self, value: Any, path: Path) -> Any:
        """`value`, at `path` of the file, with its references replaced."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise StaggerError(f"{self.place.file}: more than {MAX_VALUES:,} values, counting those of variables.")
        if isinstance(value, Mapping):
            for key in value:
                if f"${{{PREFIX}" in key:
                    raise StaggerError(
                        f"{self.place.of((*path, key))}: a variable cannot be part of a key; write it out."
                    )
            return {key: self.replaced(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.replaced(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or f"${{{PREFIX}" not in value:
            return value
        text = self._in_text(value, path)
        if len(text) == 1 and text[0][0]:
            return self.replaced(self._value(text[0][1], path), path)
        whole = "".join(self._text(part, path) if is_name else part for is_name, part in text)
        if len(whole) > MAX_CHARACTERS:
            raise StaggerError(f"{self.place.of(path)}: more than {MAX_CHARACTERS:,} characters.")
        return whole

    def _in_text(self, text: str, path: Path) -> list[tuple[bool, str]]:
        """The parts of a text: (False, plain text) and (True, name of a variable)."""
        parts: list[tuple[bool, str]] = []
        plain, *rest = text.split("${")
        for part in rest:
            name, brace, after = part.partition("}")
            if plain.endswith("$") or not part.startswith(PREFIX):
                plain += f"${{{part}"
                continue
            if not brace:
                raise StaggerError(f"{self.place.of(path)}: a '${{' without its '}}'; write $${{ for a plain ${{.")
            parts += [(False, plain)] * bool(plain) + [(True, name.removeprefix(PREFIX))]
            plain = after
        return parts + [(False, plain)] * bool(plain)

    def _value(self, name: str, path: Path) -> Any:
        if name not in self.written:
            known = nearest(name, list(self.written)) if self.written else "the file has no vars."
            raise StaggerError(f"{self.place.of(path)}: there is no variable {name!r} in vars; {known}")
        if name in self._open:
            names = " -> ".join([*self._open[self._open.index(name) :], name])
            raise StaggerError(f"{self.place.of((KEY, name))}: a variable cannot stand for itself: {names}.")
        if name not in self.values:
            self._open.append(name)
            self.values[name] = self.replaced(self.written[name], (KEY, name))
            self._open.pop()
        return self.values[name]

    def _text(self, name: str, path: Path) -> str:
        value = self._value(name, path)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (str, int, float)):
            return str(value)
        raise StaggerError(
            f"{self.place.of(path)}: the variable {name} is {described(value)}, and cannot be part of a text: let it be"
            " the whole value."
        )
