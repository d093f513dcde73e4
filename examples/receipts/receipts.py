"""Print receipts, each of which takes 2 seconds, so that none waits for longer than 30 seconds.

The WorkQueue is manifests/examples/waiting-time.yaml. Send it 200 messages at once and watch it:

    python receipts.py
    kubectl workqueue status receipts

Try the handler without a cluster:

    workqueue run receipts:print_receipt --queue receipts --declare
"""

from __future__ import annotations

import time

from workqueue import Message, Publisher


def print_receipt(message: Message) -> None:
    """Print one receipt. This example says how long its order has waited."""
    order = message.json()
    waited = time.time() - order["at"]
    time.sleep(order.get("seconds", 2.0))
    print(f"Receipt {order['number']}: started after {waited:.1f} s", flush=True)


def main(orders: int = 200) -> None:
    """Send orders, all at once."""
    with Publisher() as publisher:
        publisher.publish_many(
            ({"number": number, "at": time.time()} for number in range(orders)), queue="receipts"
        )


if __name__ == "__main__":
    main()
