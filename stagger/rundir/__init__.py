"""Every file of the run directory: where it lies, how it is encoded, what it means. Submits and runs nothing."""
