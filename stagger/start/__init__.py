"""When jobs start: delays, windows, and simulated herds. Decides only; imports neither storage nor Slurm."""
