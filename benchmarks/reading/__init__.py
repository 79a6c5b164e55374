"""How fast are shards read, filtered and written, beside datatrove and the codec alone?"""
