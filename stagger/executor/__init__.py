"""What runs a pipeline: on this machine (`local`), or as Slurm job arrays (`slurm`)."""
