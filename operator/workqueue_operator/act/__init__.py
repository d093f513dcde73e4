"""What is done: queues declared, Deployments applied, workers retired. Each act is safe to repeat."""
