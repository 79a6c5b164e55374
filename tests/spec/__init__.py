"""Pipeline files: the runs that they describe, the errors for mistakes, and the keys that a retry may change."""
