"""The connection for answers, without RabbitMQ."""

from __future__ import annotations

import os

import pytest

from workqueue.contract.binding import from_url
from workqueue.worker.replies import Replies


def test_forked_child_has_a_connection_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = Replies(lambda: from_url("amqp://127.0.0.1:1"), "test")
    of_worker = replies._pipeline()

    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        of_child = replies._pipeline()
        assert of_child is replies._pipeline()
        replies.close()

    assert of_child is not of_worker
    of_worker.close()
