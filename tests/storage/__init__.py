"""Tests of storage: file systems, and the retry policy."""
