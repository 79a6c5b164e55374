"""What holds for the whole package: which way imports point, what a task imports, what is shipped."""
