"""What steps build upon: compression, reading ahead."""
