"""`stagger doctor`: what it decides from answers of Slurm. tests/cli and tests/slurm run it."""
