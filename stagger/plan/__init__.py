"""Decides once, at launch, which rank gets which shard. No task imports this room."""
