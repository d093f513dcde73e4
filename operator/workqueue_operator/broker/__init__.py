"""One connection per broker: calls, doorbells and polls. The only package of the operator that uses pika."""
