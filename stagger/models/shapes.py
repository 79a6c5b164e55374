"""The shapes of microbatches. Imports no torch: a launch need not have it."""

from __future__ import annotations

from dataclasses import dataclass

#: Lengths of rows are multiples of this.
LENGTH_STEP = 64


@dataclass(frozen=True)
class Shapes:
    """The shapes of microbatches.

    tokens: places of a microbatch, at most, unless a single row has more.
    most: the most places that the model has in a row; None if it has no limit.
    """

    tokens: int
    most: int | None = None

    def length(self, tokens: int) -> int:
        """The length of a row of `tokens` tokens: the next multiple of LENGTH_STEP, unless the model has fewer places.

        >>> [Shapes(4096, 1000).length(tokens) for tokens in (1, 64, 65, 970)]
        [64, 64, 128, 1000]
        """
        length = -(-tokens // LENGTH_STEP) * LENGTH_STEP
        return length if self.most is None else max(tokens, min(length, self.most))

    def rows(self, length: int) -> int:
        """The number of rows of this length.

        >>> [Shapes(4096).rows(length) for length in (64, 3072, 8192)]
        [64, 1, 1]
        """
        return max(1, self.tokens // length)

    def largest(self, longest: int) -> int:
        """Places of the largest microbatch, where no row has more than `longest` tokens.

        >>> [Shapes(4096).largest(longest) for longest in (64, 3000, 8190)]
        [4096, 4096, 8192]
        """
        return max(self.tokens, self.length(longest))
