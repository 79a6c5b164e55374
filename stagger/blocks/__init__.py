"""Hosting a model's transformer blocks on many servers: who hosts which. Needs numpy (`stagger-slurm[blocks]`).

Nothing here is imported by tasks or by commands other than those for blocks.
"""
