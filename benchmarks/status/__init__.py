"""What does `stagger status` of a large run cost?"""
