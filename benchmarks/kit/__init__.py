"""Shared by all benchmarks: process costs, requirements, generated documents, datatrove's environment."""
