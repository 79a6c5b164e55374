"""Which rank gets which shard, decided once at launch. No task imports it."""
