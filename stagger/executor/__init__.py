"""Executors: run the ranks of a stage on this machine (`local`) or as Slurm job arrays (`slurm`)."""
