"""The only room that talks to Slurm. Nothing else calls a Slurm binary, or submitit.

answers.py   parses Slurm's output: pure functions, tested against outputs of Slurm 20.11 to 25.05
states.py    Slurm's job states, and the reasons for which jobs wait, in tables
command.py   runs one Slurm command, for as long as the caller can wait, and retries it while Slurm is busy
cluster.py   queries and cancellations by the command line and the end job
sbatch.py    submits job scripts
own_job.py   a task's requests about its own job; imports nothing that a task need not import
"""
