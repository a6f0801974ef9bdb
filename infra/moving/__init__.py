"""Moving the data between a commit log and PostgreSQL, while both sides serve: there and back."""
