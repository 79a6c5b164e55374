"""`stagger blocks plan`: what given GPUs can do with a model, before anything is queued."""
