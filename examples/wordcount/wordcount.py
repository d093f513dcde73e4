"""Counts the words of documents: the handler of `make demo`, and an example of a handler that publishes.

Each message is the text of a document. The counts go to the queue that the message names in its property
`reply_to`, and are confirmed there before the handler returns; only then is the message acknowledged. So a
document is counted at least once, whatever dies; `correlation_id` tells which document a result is for.

    workqueue run wordcount:handle --queue wordcount --declare      # in this folder
    workqueue send --queue wordcount --files /usr/share/common-licenses/*

Environment:
    WORDCOUNT_SECONDS: pause for each document, in seconds, 0 by default. To count words takes no time; the
        demo asks for a pause to stand for real work.
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
from workqueue.amqp.publisher import Publisher
from workqueue.contract.binding import DEFAULT_URL, Binding, from_folder, from_url

PAUSE_SECONDS = float(os.environ.get("WORDCOUNT_SECONDS", "0"))

logger = logging.getLogger(__name__)


def count(body: bytes) -> dict[str, Any]:
    """What is in a document: lines, words, different words, bytes, and the word that is there most often."""
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
    """Count one document and send the result to where the message wants it; without such a place, log it.

    What goes wrong is raised, and the message is tried again later.
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
def _publisher() -> Publisher:
    return Publisher(_binding, "wordcount results").start()


def _binding() -> Binding:
    """The Secret that is mounted into the pod, or on a laptop the same URL that the worker uses."""
    if folder := os.environ.get("WORKQUEUE_BINDING"):
        return from_folder(Path(folder))
    return from_url(os.environ.get("WORKQUEUE_URL", DEFAULT_URL))
