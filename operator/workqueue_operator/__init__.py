"""The operator: it declares queues, runs workers and scales them by queue depth."""
