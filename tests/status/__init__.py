"""The status of a run: states, failures, efficiency."""
