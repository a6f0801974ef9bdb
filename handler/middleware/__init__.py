"""Pure ASGI middleware, one class a file.

A layer that has nothing to wait for is no coroutine: it hands on what the next one returns, which awaits as well.
"""
