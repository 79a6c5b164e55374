"""The start-up planner: what each start policy would do to the storage, before anything is launched."""
