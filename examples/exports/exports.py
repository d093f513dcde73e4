"""Export the orders of a customer, page by page, until it is done or cancelled.

Terminal 1, the worker:

    workqueue run exports:export --queue exports --declare

Terminal 2, the shop, where two customers ask for an export and the first one changes their mind:

    python exports.py

`workqueue cancel --queue exports ID` does the same by hand, and `workqueue dead list --queue exports` shows what was
cancelled.
"""

from __future__ import annotations

import time

from workqueue import Message, Publisher


def export(message: Message) -> None:
    """Write the pages. A handler that is told to stop returns early: its result no longer counts."""
    order = message.json()
    for page in range(1, order["pages"] + 1):
        print(f"Customer {order['customer']}: page {page}", flush=True)
        if message.cancelled.wait(0.1):
            print(f"Customer {order['customer']}: cancelled", flush=True)
            return
    print(f"Customer {order['customer']}: done", flush=True)


def main() -> None:
    """Start two exports and cancel the first one, whether it runs or waits."""
    with Publisher() as publisher:
        first = publisher.publish({"customer": 1, "pages": 600}, queue="exports")
        publisher.publish({"customer": 2, "pages": 3}, queue="exports")
        time.sleep(1)
        publisher.cancel(first, queue="exports")


if __name__ == "__main__":
    main()
