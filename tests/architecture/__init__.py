"""Which way imports point, what a task imports, and what is installed."""
