"""A read-only web page of the WorkQueues: a process of its own, which needs nothing of the operator.

`__main__` watches WorkQueues and pods. `sampler` reads the store and asks the workers, and `history` keeps samples.
`access` checks who may see which namespace. `decisions` reads Events, and `dead_letters` reads RabbitMQ.
`view_model` prepares the data for the templates, and `server` answers browsers.
"""
