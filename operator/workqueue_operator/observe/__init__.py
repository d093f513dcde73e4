"""What is seen: the cluster in the store, the queues, the workers. Nothing here changes anything."""
