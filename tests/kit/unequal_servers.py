"""Servers of unequal speed whose spans overlap, for routing."""

from __future__ import annotations

#: Start, end, and tokens times blocks per second of each server.
Spans = list[tuple[int, int, float]]

UNEQUAL: Spans = [
    (0, 6, 12000.0),
    (6, 12, 9000.0),
    (0, 4, 3000.0),
    (4, 8, 6000.0),
    (8, 12, 5000.0),
    (2, 8, 7000.0),
    (5, 12, 11000.0),
    (0, 5, 4000.0),
]
