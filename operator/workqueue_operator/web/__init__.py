"""A read-only web page of the WorkQueues. Enabled with WORKQUEUE_PAGE_PORT.

`sampler` reads the store and asks the workers, and `history` keeps samples and decisions. `access` checks who may see
which namespace. `view_model` prepares the data for the templates. `server` answers browsers, and `relay` forwards
their requests from a standby to the leader.
"""
