"""The run spec: one typed value, from a YAML file (`load.py`) or from Python objects (`from_python.py`)."""
