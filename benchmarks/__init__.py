"""Measurements of what stagger costs and guarantees: one folder per question; see README.md."""
