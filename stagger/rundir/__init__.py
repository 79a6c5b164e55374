"""The files of the run directory: their paths, encoding and meaning. Submits and runs nothing."""
