"""Is anything lost or doubled in a run that is disturbed all the time?"""
