"""Rules for the whole package: the direction of imports, the imports of a task, the shipped files."""
