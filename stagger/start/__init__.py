"""Decides when jobs start: delays, windows, and simulated herds. Imports neither storage nor Slurm."""
