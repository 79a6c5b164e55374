"""The state of a run and the reasons of its failures, from its records and one query to Slurm."""
