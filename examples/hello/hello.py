"""The classic: two workers share a queue.

workqueue run hello:handle --queue hello --declare        in one terminal, and again in another
workqueue send --queue hello 'Hello World!' 'Bonjour !' 'Ciao mondo!'
"""

import time

from workqueue import Message


def handle(message: Message) -> None:
    """Work for a tenth of a second per character of the text."""
    text = message.text()
    print(f" [x] Received {text}", flush=True)
    time.sleep(len(text) / 10)
    print(f" [x] Done {text}", flush=True)
