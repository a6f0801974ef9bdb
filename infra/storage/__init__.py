"""The object store: a directory or an S3 bucket, its addresses, and what its errors say."""
