"""Whole local runs process every document once, whatever fails, is killed, is damaged or is launched twice."""
