"""Pipeline files: what they resolve to, what is said about mistakes, what a retry may change."""
