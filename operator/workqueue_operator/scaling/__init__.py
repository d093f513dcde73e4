"""What is known about a queue, and how many replicas follow from it."""
