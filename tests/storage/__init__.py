"""Storage on a file system, and what is asked again."""
