"""Every file of the run directory: the plan, records, the settings of a task."""
