"""A web page that shows the WorkQueues to people: read-only, off unless asked for, a room of its own.

Place in the flow: `__main__` opens it when WORKQUEUE_PAGE_PORT is set. It reads the store, hears the decisions
that `report` tells, and changes nothing. From the inside outward: `history`, `picture` and `access` hold and
work out what is shown to whom; `watch` samples; `server` answers browsers; `relay` sends them to the leader.
"""
