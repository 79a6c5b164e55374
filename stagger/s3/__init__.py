"""S3, through s3fs or obstore: `store` holds what stagger needs of it, an engine makes the requests."""
