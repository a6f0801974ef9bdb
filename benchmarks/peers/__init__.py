"""What people would pick instead, as its tutorials write it: the service's routes, fields and statuses.

It runs in `.venv-bench`, and imports nothing of the service.
"""
