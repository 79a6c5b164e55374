"""Checks whether runs can work from here: Slurm, its compute nodes, the folder that they share, the storage."""
