"""Runs and storage engines on S3 servers, which refuse, break off and lose answers."""
