"""What operator, worker, publisher and kubectl plugin agree on. Pure."""
