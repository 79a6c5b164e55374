"""How ranks become jobs, without a cluster: job scripts, resources, and the words of Slurm."""
