"""Remind customers of their carts, a while after they left the shop.

Terminal 1, the worker:

    workqueue run reminders:remind --queue reminders --declare

Terminal 2, the shop:

    python reminders.py

List what waits with `workqueue delayed list --queue reminders`.
"""

from __future__ import annotations

import time

from workqueue import Message, Publisher


def remind(message: Message) -> None:
    """Send the reminder. This example prints how late it is."""
    late = time.time() - message.headers["x-workqueue-due-at"] / 1000
    print(f"Cart {message.json()['cart']}: you left something behind ({late:.1f} s late)", flush=True)


def main() -> None:
    """Schedule three reminders."""
    with Publisher() as publisher:
        for cart, delay in ((1, 5), (2, 2.5), (3, 1)):
            publisher.publish({"cart": cart}, queue="reminders", delay=delay, message_id=f"cart-{cart}")


if __name__ == "__main__":
    main()
