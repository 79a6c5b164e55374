"""Tests that need the real cluster. Parsing of Slurm's output, which needs none, is tested in tests/executor."""
