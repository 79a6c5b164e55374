"""How hidden states travel between the clients of a swarm and its servers. Needs pyzmq (`stagger-slurm[models]`).

Nothing here imports torch: a hidden state is bytes, with the name of its dtype and its shape.
"""
