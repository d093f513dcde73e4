"""The ways to run a person's code for one message: a Python function, a command, an HTTP call."""
