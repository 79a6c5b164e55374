"""Tests of the foundations of steps: compression and reading ahead."""
