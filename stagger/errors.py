"""The errors that users see, and numbers in their sentences. Each message names the mistake, its place, and what to do
next.
"""

from __future__ import annotations

#: Spaces other than the ASCII space. They are harmless, though `str.isprintable` counts them out.
SPACES = frozenset("\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000")


def one_line(text: str, keep: str = "") -> str:
    r"""`text` as one line that no terminal obeys: control, formatting and invisible characters become escapes.

    File names, values and foreign messages may hold line ends, terminal sequences and marks that reverse the text. The
    characters in `keep` stay as they are.

    >>> print(one_line("a\nb\x1b[2J \u202ec"))
    a\nb\x1b[2J \u202ec
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in SPACES or c in keep else ascii(c)[1:-1] for c in text)


#: The verbs of a sentence about one thing that change by more than an `s` when there are several.
VERBS = {"is": "are", "has": "have", "was": "were", "does": "do"}


def counted(number: int, noun: str, verb: str = "") -> str:
    """A number of things, in a sentence: with the noun, and with a verb in the third person, in agreement.

    >>> counted(1, "rank"), counted(8000, "rank"), counted(0, "retry"), counted(2, "job", "starts")
    ('1 rank', '8,000 ranks', '0 retries', '2 jobs start')
    """
    return f"{number:,} {plural(number, noun)}{f' {agreeing(number, verb)}' if verb else ''}"


def agreeing(number: int, verb: str) -> str:
    """A verb in the third person, in agreement with a number of things.

    >>> agreeing(1, "has"), agreeing(3, "has"), agreeing(3, "starts")
    ('has', 'have', 'start')
    """
    return verb if number == 1 else VERBS.get(verb, verb.removesuffix("s"))


def plural(number: int, noun: str) -> str:
    """A noun, in agreement with a number of things.

    >>> plural(1, "rank"), plural(2, "rank"), plural(2, "retry"), plural(2, "process")
    ('rank', 'ranks', 'retries', 'processes')
    """
    if number == 1:
        return noun
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "ch", "x")) else "s")


class _Sentences(Exception):
    """An error whose message has one line for each of `sentences`, whatever names and values they hold."""

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(map(one_line, sentences)))


class StaggerError(_Sentences):
    """Base of all errors with a message for the user. The command line prints it and exits with `exit_status`: 2 if the
    request was wrong and nothing was launched, 1 in subclasses for failures at run time.
    """

    exit_status = 2


class RunFailed(StaggerError):
    """Ranks of the run failed. `failed_ranks` maps each stage's name to its failed ranks."""

    exit_status = 1

    def __init__(self, message: str, failed_ranks: dict[str, list[int]] | None = None) -> None:
        super().__init__(message)
        self.failed_ranks = failed_ranks or {}


class StorageError(StaggerError):
    """The storage did not answer, or rejected a request. The message names the path and the store's own error."""

    exit_status = 1


class BadInput(_Sentences):
    """A shard cannot be read to its end: truncated, damaged, changed since planning, or not of the format it claims."""


class BadRecord(BadInput):
    """One record of a shard is malformed; the records after it can be read. It is counted under `kind`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Interrupted(BaseException):
    """A signal asked the process to stop. Not an `Exception`, so that no step's `except Exception` swallows it."""

    def __init__(self, signal: int) -> None:
        from signal import Signals  # Its enums would cost each start 0.6 ms.

        self.signal = Signals(signal)
        super().__init__(self.signal.name)

    @property
    def exit_status(self) -> int:
        return exit_status_of(self.signal)


def exit_status_of(signal: int) -> int:
    """Exit status of a process that a signal stopped, as shells report it: 128 + the signal's number."""
    return 128 + signal


def missing_extra(extra: str, package: str, error: ImportError) -> StaggerError:
    """The error for an optional dependency that is not installed."""
    return StaggerError(
        f"{package} is not installed here ({error}); install it with: pip install 'stagger-slurm[{extra}]'"
    )
