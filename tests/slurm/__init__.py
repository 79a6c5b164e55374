"""All that needs the real cluster. The words of Slurm, which need none, are tested in tests/executor."""
