"""Job scripts, resources, and Slurm's commands and their output, all without a cluster."""
