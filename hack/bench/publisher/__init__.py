"""How many messages a second are published with confirmation: against a bare pika pipeline and others.

All contenders publish the same persistent, mandatory messages of 100 bytes. They take turns in rounds.
"""
