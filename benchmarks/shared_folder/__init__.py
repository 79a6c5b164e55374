"""How long does a start take when its software and its run lie on a slow shared file system?"""
