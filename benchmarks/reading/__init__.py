"""How fast are shards read, filtered and written, compared with datatrove and with the codec alone?"""
