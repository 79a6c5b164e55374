"""Charts of rates over time: block characters for a terminal, matplotlib for a file."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from stagger.errors import StaggerError

#: Characters for a height of 0 to 8 eighths of a line.
BLOCKS = " ▁▂▃▄▅▆▇█"

FILE_TYPES = (".png", ".svg")


def binned(times: Sequence[float], end: float, bins: int) -> list[float]:
    """Events per second in each of `bins` equal parts of 0..end seconds.

    >>> binned([0.0, 0.5, 3.9, 4.0], 4.0, 2)
    [1.0, 1.0]
    """
    width = end / bins or 1.0
    counts = [0] * bins
    for time in times:
        if time <= end:
            counts[min(int(time / width), bins - 1)] += 1
    return [count / width for count in counts]


def bars(values: Sequence[float], lines: int, top: float | None = None) -> list[str]:
    """One column per value, as `lines` lines of text from top to bottom; `top` (default: the largest) has full height.

    >>> bars([0, 1, 2, 4], 1), bars([1, 4], 2)
    ([' ▂▄█'], [' █', '▄█'])
    """
    top = top or max(values, default=0) or 1
    heights = [math.ceil(8 * lines * value / top) for value in values]
    return ["".join(BLOCKS[min(max(height - 8 * below, 0), 8)] for height in heights) for below in range(lines)][::-1]


def check_plot(path: str) -> None:
    """Raise StaggerError when the file type is unknown, or matplotlib is not installed."""
    if not path.lower().endswith(FILE_TYPES):
        raise StaggerError(f"--plot {path}: a plot is a {' or '.join(FILE_TYPES)} file.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise StaggerError("--plot needs matplotlib; install it with: pip install 'stagger-slurm[plot]'") from None


def save_plot(path: str, series: Mapping[str, Sequence[float]], end: float, title: str, limit: float | None) -> None:
    """Plot the events per second of each series over 0..end seconds, and the limit if there is one.

    Raises StaggerError when the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    bins = max(1, min(600, math.ceil(end)))
    edges = [end * number / bins for number in range(bins + 1)]
    for name, times in series.items():
        axes.stairs(binned(times, end, bins), edges, label=name, linewidth=1.5)
    if limit:
        axes.axhline(limit, color="black", linestyle="--", linewidth=1, label=f"limit {limit:g}")
    axes.set_title(textwrap.fill(title, 100), fontsize=10)
    axes.set(xlabel="seconds since the first job began", ylabel="requests per second", xlim=(0, end))
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StaggerError(f"--plot {path}: {error.strerror or error}.") from error
