"""`stagger blocks simulate`: compare balancing policies on servers that come, go and crash."""
