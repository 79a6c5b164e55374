"""The bundle of the modules that tasks import."""
