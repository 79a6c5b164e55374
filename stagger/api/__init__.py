"""The Python API: executors, and handles of their runs."""
