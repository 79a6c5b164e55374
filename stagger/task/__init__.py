"""One task from top to bottom: its entry, an attempt of a rank, its log. Imports no launch, executor or spec."""
