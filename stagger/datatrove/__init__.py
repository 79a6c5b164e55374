"""What stagger does for blocks of datatrove. It recognises them by their shape, and imports no datatrove."""
