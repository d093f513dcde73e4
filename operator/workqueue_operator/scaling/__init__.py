"""Gather what is known about a queue, decide how many replicas it needs, and scale."""
