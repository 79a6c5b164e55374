"""The one room that talks to Slurm. Nothing else calls a Slurm binary, or submitit.

answers.py      what Slurm prints, parsed: pure functions, tested against outputs of Slurm 20.11 to 25.05
runner.py       runs one of its commands, and asks again when it is only busy
cluster.py      what the command line and the job that ends a stage ask, and tell
submission.py   sbatch
job.py          what a task asks about itself: nothing that a task need not import
"""
