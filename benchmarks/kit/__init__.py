"""What benchmarks are made with: costs of processes, requirements, made-up documents, datatrove's environment."""
