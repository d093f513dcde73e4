"""What knows RabbitMQ: connections, deliveries, publishing. The only part of the worker that imports pika."""
