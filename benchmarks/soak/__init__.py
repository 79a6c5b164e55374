"""Does a run lose or duplicate records while it is disturbed all the time?"""
