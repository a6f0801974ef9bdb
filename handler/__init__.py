"""What faces outside: HTTP by Starlette, Lambda by Mangum."""
