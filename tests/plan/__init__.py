"""What a launch decides once: which rank gets which shard, and how many requests a start makes."""
