"""Replay and purge from the page, with a real RabbitMQ."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.rabbitmq import VirtualHost
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract import topology
from workqueue.contract.binding import Binding, from_url
from workqueue.contract.topology import QueueSettings
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_web.dead_letters import ChangedError, DeadLetters

LETTERS = 5


class Secrets:
    """Has the connection data of the virtual host."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def binding(self, *_: str) -> Binding:
        return from_url(self.url)


@pytest.fixture
def filled(vhost: VirtualHost) -> VirtualHost:
    """A queue with dead letters."""
    with PublishPipeline(lambda: from_url(vhost.url), "test") as publisher:
        publisher.declare_plan(topology.plan(QueueSettings("jobs"))).result()
        for number in range(LETTERS):
            publisher.publish_and_wait(Outgoing("jobs.dead", b"x", message_id=f"m{number}"))
    return vhost


def of(vhost: VirtualHost) -> tuple[DeadLetters, WorkQueue]:
    secrets: Any = Secrets(vhost.url)
    spec = {
        "connectionSecretRef": {"name": "rabbitmq"},
        "worker": {"image": "x:1", "handler": {"python": "a:b"}},
    }
    body = {"metadata": {"name": "jobs", "namespace": "shop", "uid": "u"}, "spec": spec}
    return DeadLetters(secrets, ("rabbitmq",)), WorkQueue.model_validate(body)


@pytest.mark.parametrize(("action", "waiting"), [("replay", LETTERS), ("purge", 0)], ids=["replay", "purge"])
async def test_dead_letters_are_settled_if_their_number_is_as_confirmed(
    filled: VirtualHost, action: str, waiting: int
) -> None:
    letters, workqueue = of(filled)
    settle = getattr(letters, action)
    assert (await letters.reasons(workqueue)).total == LETTERS
    assert await letters.count(workqueue) == LETTERS
    with pytest.raises(
        ChangedError, match="there were 4 dead letters when the form was shown, and now there are 5"
    ):
        await settle(workqueue, LETTERS - 1)
    assert (filled.depth("jobs").ready, filled.depth("jobs.dead").ready) == (0, LETTERS)

    outcome = await settle(workqueue, LETTERS)

    assert (outcome.settled, outcome.errors) == (LETTERS, ())
    assert (filled.depth("jobs").ready, filled.depth("jobs.dead").ready) == (waiting, 0)
    assert (await letters.reasons(workqueue)).total == 0, "the sample from before is not shown"
    with pytest.raises(ChangedError):
        await settle(workqueue, LETTERS)
