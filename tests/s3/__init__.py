"""Runs and storage engines on S3 servers that reject requests, break off bodies and lose responses."""
