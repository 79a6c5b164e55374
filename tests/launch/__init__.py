"""Checks before a launch, the ranks of a retry, and executors in Python."""
