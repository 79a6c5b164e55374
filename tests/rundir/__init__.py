"""The files of the run directory: the plan, the records, the settings of a task."""
