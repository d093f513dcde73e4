"""Compare confirmed publishing, in messages per second, with a bare pika pipeline and other libraries.

All contenders publish the same persistent, mandatory messages of 100 bytes. Every round runs each contender once,
in another order.
"""
