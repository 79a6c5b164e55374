"""Tests of a task's log."""
