"""What a user asks for, as one typed value: from a YAML file (`load`) or from Python objects."""
