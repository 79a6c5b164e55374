"""The staggered start: delays in Python and bash, simulated herds, and start times of real jobs."""
