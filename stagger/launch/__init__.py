"""What happens on launch, retry, cancel and at a stage's end. Only cli and api stand above it."""
