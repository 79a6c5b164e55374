"""The tests of stagger."""
