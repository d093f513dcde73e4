"""Gather the depth of a queue, decide how many replicas it needs, and scale."""
