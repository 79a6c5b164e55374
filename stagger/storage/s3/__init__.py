"""S3: one engine makes one request; retries, resumed reads and multipart uploads are decided above it."""
