"""Executors and the handles of their runs, from Python."""
