"""`kubectl workqueue`: WorkQueues at the prompt of whoever works with kubectl."""
