"""The handler of the Python images: prints each message in upper case."""

from workqueue import Message


def handle(message: Message) -> None:
    """Handle one message."""
    print(message.body.decode().upper(), flush=True)
