"""The worker process: it consumes messages, runs the handler and settles deliveries."""
