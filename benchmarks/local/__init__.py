"""What does the local executor cost per rank?"""
