"""Block placement, the registry, a server's life, and the simulation of swarms."""
