"""How long does a launch of thousands of tasks take?"""
