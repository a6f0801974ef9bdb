"""The domain: models, schemas and use cases. No HTTP, no AWS, no environment."""
