"""Send mails through a service that accepts only so many per second.

The WorkQueue is manifests/examples/rate-limit.yaml: all its workers together start 10 handlers per second. A worker
outside of the cluster takes part with the queue of tokens that the operator fills:

    workqueue run mails:send --queue mails --limit-rate-queue mails.limit.starts
"""

from __future__ import annotations

from workqueue import Message


def send(message: Message) -> None:
    """Send a mail. This example prints it."""
    mail = message.json()
    print(f"To {mail['to']}: {mail['subject']}", flush=True)
