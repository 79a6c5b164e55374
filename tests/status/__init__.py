"""What a user is told of a run: states, failures, efficiency."""
