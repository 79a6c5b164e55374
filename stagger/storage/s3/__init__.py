"""S3. An engine makes single requests; store.py adds retries, resumed reads and multipart uploads."""
