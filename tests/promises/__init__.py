"""Whole runs on this machine: every document once, whatever fails, is killed, damaged or launched twice."""
