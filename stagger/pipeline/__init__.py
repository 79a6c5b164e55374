"""The contract of steps: documents, chains of steps, and what a step may use. Knows nothing of runs or Slurm."""
