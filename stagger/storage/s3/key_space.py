"""Guesses where keys lie between two others, from the keys seen so far. Pure. A wrong guess costs a request, no key."""

from __future__ import annotations

import string
from bisect import bisect_left
from itertools import takewhile

#: The first code point of UTF-16's surrogates. Below it, a store that sorts keys by UTF-16 sorts them as all others do.
SURROGATES = "\ud800"

#: Characters of a key that are compared, after those that two keys have in common.
DEPTH = 10

#: Characters that are likely where one of them was seen.
CLASSES = (string.digits, "abcdef", string.ascii_lowercase, string.ascii_uppercase)


class KeySpace:
    """The keys that begin with `prefix`, with the characters that were seen at each place of them."""

    def __init__(self, prefix: str) -> None:
        self.floor = len(prefix)
        self._seen: list[set[str]] = []
        self._letters: dict[tuple[int, bool], str] = {}

    def learn(self, name: str) -> None:
        """Take notice of the characters of a key."""
        self._seen += [set() for _ in range(len(name) - len(self._seen))]
        for place, letter in enumerate(name):
            if letter not in self._seen[place]:
                self._seen[place].add(letter)
                for wide in (False, True):
                    self._letters.pop((place, wide), None)

    def letters(self, place: int, *, wide: bool = False) -> str:
        """The characters that are likely at a place of a key, in order; never empty.

        Where a single character was seen, only that one is, unless `wide`: it is a part of all names, as in `part-000`.
        """
        if (place, wide) not in self._letters:
            seen = self._seen[place] if place < len(self._seen) else set()
            self._letters[place, wide] = "".join(seen) if len(seen) == 1 and not wide else likely(seen)
        return self._letters[place, wide]

    def value(self, name: str | None, base: int, *, wide: bool = False) -> int:
        """A number for the place of a key among those that have its first `base` characters; None is after all keys."""
        value = 0
        for place in range(base, base + DEPTH):
            letters = self.letters(place, wide=wide)
            if name is None:
                digit = len(letters) + 1 if place == base else 0
            else:
                digit = bisect_left(letters, name[place]) + 1 if place < len(name) else 0
            value = value * (len(letters) + 1) + digit  # A character after all that are likely carries.
        return value

    def base(self, low: str, high: str | None) -> int:
        """The number of characters that all keys from `low` to `high` have in common."""
        return self.floor if high is None else common(low, high)

    def between(self, low: str, high: str | None) -> str | None:
        """A string about in the middle of two others; None if there is none that divides the keys in every order."""
        return self._between(low, high, wide=False) or self._between(low, high, wide=True)

    def _between(self, low: str, high: str | None, *, wide: bool) -> str | None:
        base = self.base(low, high)
        letters = [self.letters(place, wide=wide) for place in range(base, base + DEPTH)]
        middle = (self.value(low, base, wide=wide) + self.value(high, base, wide=wide)) // 2
        digits: list[int] = []
        for known in reversed(letters[1:]):
            middle, digit = divmod(middle, len(known) + 1)
            digits.append(digit)
        digits.append(min(middle, len(letters[0])))
        text = low[:base]
        for known, digit in zip(letters, takewhile(bool, reversed(digits)), strict=False):
            text += known[digit - 1]
        return text if low < text and (high is None or text < high) and self.divides(text) else None

    def beyond(self, start: str) -> str | None:
        """The least string after all keys that begin with `start`; None if that is after all keys of this space.

        >>> KeySpace("in/").beyond("in/part-00"), KeySpace("in/").beyond("in/")
        ('in/part-01', None)
        """
        while len(start) > self.floor:
            after = start[:-1] + chr(ord(start[-1]) + 1)
            if self.divides(after):
                return after
            start = start[:-1]
        return None

    def divides(self, text: str) -> bool:
        """Whether the same keys are greater than `text` by code points, by UTF-8's bytes, and by UTF-16."""
        return max(text[self.floor :], default="") < SURROGATES


def common(one: str, other: str) -> int:
    """The number of first characters that two strings have in common.

    >>> common("part-01", "part-1"), common("a", "a/b"), common("", "a")
    (5, 1, 0)
    """
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def likely(seen: set[str]) -> str:
    """The characters that are likely where these were seen, in order. Without any: digits and small letters.

    >>> likely({"3", "."}), likely({"7", "c"}), likely({"k", "_"})
    ('.0123456789', '0123456789abcdef', '_abcdefghijklmnopqrstuvwxyz')
    """
    letters = {letter for letter in seen if " " <= letter < SURROGATES} or {"0", "z"}
    digits, hexadecimal, small, capital = map(set, CLASSES)
    if letters & small:
        letters |= hexadecimal if letters & small <= hexadecimal and letters & digits else small
    for kind in (digits, capital):
        if letters & kind:
            letters |= kind
    return "".join(sorted(letters))
