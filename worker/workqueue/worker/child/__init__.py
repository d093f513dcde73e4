"""A process that runs a Python handler for a worker. It has no connection to RabbitMQ,
except one for the handler's answers.

It reads messages from a socket and answers each with an outcome. The worker ends it when a handler does not stop. If
the worker is gone, it ends itself.
"""
