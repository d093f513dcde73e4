"""A web page of the WorkQueues: a process of its own, which needs nothing of the operator.

`__main__` watches WorkQueues and pods. `sampler` reads the store and asks the workers, `history` keeps samples, and
`index` has what the overview needs. `access` checks who may do what in which namespace. `decisions` reads Events,
`dead_letters` reads RabbitMQ, and `operator_lease` knows whether an operator runs. `actions` carries out changes of
users. `view_model` prepares the data for the templates, and `server` answers browsers.
"""
