"""Which server hosts which blocks: pure rules over plain values. No clock, no storage, no Slurm."""
