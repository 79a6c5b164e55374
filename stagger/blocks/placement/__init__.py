"""Rules that decide which server hosts which blocks: pure functions. No clock, no storage, no Slurm."""
