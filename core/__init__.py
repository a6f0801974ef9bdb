"""The domain: models, schemas and use cases. No HTTP, no AWS, no environment."""

from core import peewee_alone as peewee_alone

__version__ = "0.2.0"  # of the whole project: everything that shows a version asks here
