"""Do the jobs of a real array start as they were told to?"""
