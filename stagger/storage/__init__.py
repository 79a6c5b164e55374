"""Bytes at any path: local files, S3, and whatever fsspec opens. Knows nothing of runs, plans or Slurm."""
