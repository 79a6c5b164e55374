"""What does planning shards and starts cost a launch?"""
