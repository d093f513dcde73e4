"""One connection to a broker, and what is done over it: calls, bells, sweeps. The only place that knows pika."""
