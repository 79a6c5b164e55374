"""What does a task cost until its first read?"""
