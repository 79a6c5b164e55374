"""Do the jobs of a real array start as planned?"""
