"""The kinds of handlers: a Python function, a command, an HTTP server."""
