"""What does a task cost up to its first read?"""
