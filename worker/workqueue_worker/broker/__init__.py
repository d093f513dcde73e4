"""What knows RabbitMQ: connections, deliveries, publishing. The only part of the worker that imports pika."""

from . import pika_private as _pika_private  # noqa: F401 - checks that the installed pika can be used
