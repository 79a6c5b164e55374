"""Host a model's transformer blocks on many servers: which server hosts which. Needs numpy (`stagger-slurm[blocks]`).

Only the tasks of block stages and the commands for blocks import this package.
"""
