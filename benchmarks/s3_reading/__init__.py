"""How fast does a task read many small, several medium, or one large object from S3?"""
