"""The staggered start: delays in Python and bash, simulated herds, and the account of real starts."""
