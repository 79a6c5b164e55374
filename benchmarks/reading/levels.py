"""What a level of compression costs: CPU to compress and to decompress, and bytes, beside zstd-3, the default.

Compresses generated JSON Lines (kit/documents.py) through the compressor that writers use, in calls of the same size,
and reads the result back. A case with `frames` begins a new zstd frame after that many bytes of text; the others write
a single frame.
"""

from __future__ import annotations

import sys
import time
from random import Random
from typing import Any

from benchmarks.kit import documents, measure
from stagger.pipeline.compression import Codec, compressor
from stagger.pipeline.decompression import decompressed
from stagger.pipeline.task_context import GATHER_BYTES

#: Codec, level and bytes per frame (0: one frame). The first is the default, with which the others are compared.
CASES: tuple[tuple[Codec, int, int], ...] = (
    ("zstd", 3, 0),
    ("zstd", -1, 0),
    ("zstd", 1, 0),
    ("zstd", 6, 0),
    ("zstd", 9, 0),
    ("zstd", 3, 2**20),
    ("zstd", 3, 2**23),
    ("gzip", 1, 0),
    ("gzip", 2, 0),
    ("gzip", 3, 0),
)


def compressed(data: bytes, codec: Codec, level: int, frame: int) -> list[bytes]:
    """The compressed pieces of `data`."""
    pieces: list[bytes] = []
    for start in range(0, len(data), frame or len(data)):
        one = compressor(codec, level)
        end = min(start + (frame or len(data)), len(data))
        pieces += (one.compress(data[at : min(at + GATHER_BYTES, end)]) for at in range(start, end, GATHER_BYTES))
        pieces.append(one.flush())
    return list(filter(None, pieces))  # A compressor gathers before it hands over.


def measured(data: bytes, codec: Codec, level: int, frame: int) -> dict[str, float]:
    """CPU seconds and bytes of one case. Raises RuntimeError unless the same bytes are read back."""
    began = time.process_time()
    pieces = compressed(data, codec, level, frame)
    wrote = time.process_time() - began
    began = time.process_time()
    content = decompressed(iter(pieces), codec)
    found = sum(map(len, iter(lambda: content.read(2**20), b"")))
    if found != len(data):
        raise RuntimeError(f"{codec}-{level}: {found} bytes were read back of {len(data)}")
    return {"write_cpu_s": wrote, "read_cpu_s": time.process_time() - began, "bytes": sum(map(len, pieces))}


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=3)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    size = options.megabytes * 10**6
    data = b"".join(documents.records(Random(options.seed), size))
    results: dict[str, Any] = {}
    for codec, level, frame in CASES:
        runs = [measured(data, codec, level, frame) for _ in range(options.repeat)]
        results[f"{codec} level {level}{f', frames of {frame:,} bytes' if frame else ''}"] = {
            key: measure.summary(run[key] for run in runs)["median"] for key in runs[0]
        }
    default = dict(next(iter(results.values())))
    for name, found in results.items():
        found |= {f"{key} of the default": round(found[key] / default[key], 3) for key in default}
        measure.say(f"{name}: {found}")
    return measure.report(options, results, [])


if __name__ == "__main__":
    sys.exit(main())
