"""`stagger blocks simulate`: policies of balancing blocks, compared on servers that come, go and crash."""
