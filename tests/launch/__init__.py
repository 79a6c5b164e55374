"""What is checked before a launch, and which ranks a retry takes; executors from Python."""
