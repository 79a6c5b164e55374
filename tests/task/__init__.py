"""What one task does beside its work: its log."""
