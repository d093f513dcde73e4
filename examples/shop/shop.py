"""Send orders to the API of a shop, which accepts only five calls at the same time.

The WorkQueue is manifests/examples/limits.yaml: all its workers together run 5 handlers. Send it 20 orders:

    python shop.py

A worker outside of the cluster takes part with the queue of tokens that the operator fills:

    workqueue run shop:send_order --queue orders --limit-queue limit.NAMESPACE.shop-api.handlers
"""

from __future__ import annotations

import time

from workqueue import Message, Publisher


def send_order(message: Message) -> None:
    """Send an order. This example says when the call began and ended."""
    number, begun = message.json()["number"], time.time()
    time.sleep(1.0)
    print(f"Order {number}: {begun:.2f} to {time.time():.2f}", flush=True)


def main(orders: int = 20) -> None:
    """Send orders, all at once."""
    with Publisher() as publisher:
        publisher.publish_many(({"number": number} for number in range(orders)), queue="orders")


if __name__ == "__main__":
    main()
