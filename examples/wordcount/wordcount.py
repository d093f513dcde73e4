"""Count the words of documents: the handler of `make demo`, and an example of a handler that publishes.

Each message is the text of a document. The handler publishes the counts to the queue in the message's property
`reply_to`, and waits for the confirmation. The worker acknowledges the message after that. So each document is
counted at least once, whatever crashes. The `correlation_id` of a result identifies its document.

    workqueue run wordcount:handle --queue wordcount --declare      # in this folder
    workqueue send --queue wordcount --files /usr/share/common-licenses/*

Environment:
    WORDCOUNT_SECONDS: pause for each document, in seconds, 0 by default. Counting words takes no time, so the demo
        sets a pause that stands for real work.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from workqueue import Message
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract.binding import DEFAULT_URL, Binding, from_folder, from_url

PAUSE_SECONDS = float(os.environ.get("WORDCOUNT_SECONDS", "0"))

logger = logging.getLogger(__name__)


def count(body: bytes) -> dict[str, Any]:
    """Return the lines, words, distinct words and bytes of a document, and its most frequent word."""
    words = re.findall(r"\w+", body.decode().lower())
    ranking = sorted(Counter(words).items(), key=lambda entry: (-entry[1], entry[0]))
    return {
        "lines": body.count(b"\n"),
        "words": len(words),
        "different": len(ranking),
        "bytes": len(body),
        "top": ranking[0][0] if ranking else None,
    }


def handle(message: Message) -> None:
    """Count one document and publish the result to the queue in `reply_to`; without one, log it.

    Any error is raised, and the worker retries the message later.
    """
    time.sleep(PAUSE_SECONDS)
    result = count(message.body)
    properties = message.properties
    if properties.reply_to is None:
        logger.info("Counted a document.", extra=result)
        return
    _publisher().publish_and_wait(
        Outgoing(
            properties.reply_to,
            json.dumps(result).encode(),
            content_type="application/json",
            correlation_id=properties.message_id,
        )
    )


@cache
def _publisher() -> PublishPipeline:
    return PublishPipeline(_binding, "wordcount results").start()


def _binding() -> Binding:
    """Return the connection of the mounted Secret; on a laptop, of the URL that the worker uses."""
    if folder := os.environ.get("WORKQUEUE_BINDING"):
        return from_folder(Path(folder))
    return from_url(os.environ.get("WORKQUEUE_URL", DEFAULT_URL))
