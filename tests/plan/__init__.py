"""Decisions of a launch: which rank gets which shard, and how many requests the start of a job makes."""
