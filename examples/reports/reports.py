"""Make a report each night, once, although its message may come twice.

The WorkQueue is manifests/examples/recurring.yaml. Try the handler without a cluster:

    workqueue run reports:make --queue reports --declare
    workqueue send --queue reports --content-type application/json '{"kind": "daily"}'
"""

from __future__ import annotations

from workqueue import Message

made: set[str] = set()
"""The ids of the slots whose report exists. A real handler keeps them in its database."""


def make(message: Message) -> None:
    """Make the report of one slot. The message id names the slot."""
    slot = message.properties.message_id or ""
    if slot in made:
        print(f"{slot} exists already", flush=True)
        return
    made.add(slot)
    print(f"{message.json()['kind']} report for {slot}", flush=True)
