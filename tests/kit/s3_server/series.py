"""Listings of millions of objects that do not exist: computed a page at a time, in half a millisecond."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate

from tests.kit.s3_server.protocol import Request, Response, S3Error, xml

#: An odd multiplier of the numbers of objects, whose hexadecimal digits look like those of an MD5.
MIXER = 0x9E3779B97F4A7C15F39CC0605CEDC835

ROW = (
    "<Contents><Key>%s%08d.jsonl.gz</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;%032x&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


@dataclass(frozen=True)
class Series:
    """Objects `{prefix}00000000.jsonl.gz`, ... of about `size` bytes."""

    prefix: str
    count: int
    size: int

    def rows(self, start: int, stop: int) -> str:
        prefix, size = self.prefix, self.size
        of = [one for i in range(start, stop) for one in (prefix, i, i * MIXER % 2**128, size + i * 7919 % 1000)]
        return ROW * (stop - start) % tuple(of)


class Listing:
    """The keys of several series, in order; no series lies within another."""

    def __init__(self, series: list[Series]) -> None:
        self.series = sorted(series, key=lambda one: one.prefix)
        self.starts = [0, *accumulate(one.count for one in self.series)]

    def key(self, number: int) -> str:
        place = bisect_right(self.starts, number) - 1
        return f"{self.series[place].prefix}{number - self.starts[place]:08d}.jsonl.gz"

    def page(self, request: Request) -> Response:
        """The answer to ListObjectsV2. No key may lie in a folder below the prefix, if there is a delimiter."""
        query = request.query
        prefix, after, every = query.get("prefix", ""), query.get("start-after", ""), range(self.starts[-1])
        start = bisect_left(every, prefix, key=self.key)
        if token := query.get("continuation-token", ""):
            start = int(token)
        elif after:
            start = max(start, bisect_right(every, after, key=self.key))
        end = bisect_right(every, prefix, key=lambda number: self.key(number)[: len(prefix)])
        stop = min(end, start + min(1000, int(query.get("max-keys", 1000))))
        delimiter = query.get("delimiter", "")
        if delimiter and start < stop and delimiter in self.key(start)[len(prefix) :]:
            raise S3Error(501, "NotImplemented", "Folders of a series cannot be listed.")
        following = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < end else ""
        rows = "".join(
            one.rows(max(start, first) - first, min(stop, first + one.count) - first)
            for one, first in zip(self.series, self.starts, strict=False)
            if start < first + one.count and first < stop
        )
        truncated = "true" if following else "false"
        name = f"<Name>{request.bucket}</Name><KeyCount>{max(0, stop - start)}</KeyCount>"
        return xml("ListBucketResult", f"{name}<IsTruncated>{truncated}</IsTruncated>{following}{rows}")
