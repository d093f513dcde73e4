"""Delay queues that a publisher declares for several messages at the same time, without RabbitMQ."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from workqueue import AsyncPublisher, Publisher, publisher
from workqueue.amqp.errors import BrokerError
from workqueue.amqp.outgoing import Outgoing
from workqueue.contract import topology

URL = "amqp://localhost"
SAFE_AFTER = 0.3
DELAYS = (60, 60, 5)


class FakePipeline:
    """Notes when queues were created and when messages were sent."""

    def __init__(self) -> None:
        self.queues: set[str] = set()
        self.created = 0.0
        self.sent: list[float] = []

    def declare_plan(self, plan: topology.Plan) -> Future[bool]:
        answer: Future[bool] = Future()
        names = {queue.name for queue in plan.queues}
        is_new = not names <= self.queues
        if is_new:
            self.created = time.monotonic()
        self.queues |= names
        answer.set_result(is_new)
        return answer

    def publish_and_wait(self, _outgoing: Outgoing) -> None:
        self.sent.append(time.monotonic())

    async def publish_async(self, outgoing: Outgoing) -> None:
        self.publish_and_wait(outgoing)

    @property
    def shortest_wait(self) -> float:
        return min(self.sent) - self.created


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    made = FakePipeline()
    monkeypatch.setattr(publisher, "SAFE_AFTER_SECONDS", SAFE_AFTER)
    monkeypatch.setattr(publisher._Base, "_pipeline", lambda _: made)
    return made


async def test_tasks_wait_for_queues_that_another_one_creates(pipeline: FakePipeline) -> None:
    made = AsyncPublisher(URL)

    await asyncio.gather(*(made.publish("later", queue="jobs", delay=delay) for delay in DELAYS))

    assert len(pipeline.sent) == len(DELAYS)
    assert pipeline.shortest_wait >= SAFE_AFTER


def test_threads_wait_for_queues_that_another_one_creates(pipeline: FakePipeline) -> None:
    made = Publisher(URL)

    with ThreadPoolExecutor() as threads:
        for ended in [threads.submit(made.publish, "later", queue="jobs", delay=delay) for delay in DELAYS]:
            ended.result()

    assert pipeline.shortest_wait >= SAFE_AFTER


async def test_next_message_waits_after_a_cancelled_one(pipeline: FakePipeline) -> None:
    made = AsyncPublisher(URL)
    first = asyncio.create_task(made.publish("later", queue="jobs", delay=60))
    await asyncio.sleep(SAFE_AFTER / 3)
    first.cancel()

    await made.publish("later", queue="jobs", delay=60)

    assert pipeline.shortest_wait >= SAFE_AFTER


async def test_failed_declaration_fails_all_that_wait_for_it(pipeline: FakePipeline) -> None:
    made = AsyncPublisher(URL)
    answers: list[Future[bool]] = []

    def fail_later(_plan: topology.Plan) -> Future[bool]:
        answers.append(Future())
        asyncio.get_running_loop().call_later(0.1, answers[-1].set_exception, BrokerError("no answer"))
        return answers[-1]

    pipeline.declare_plan = fail_later  # type: ignore[method-assign]

    ended = await asyncio.gather(
        *(made.publish("later", queue="jobs", delay=60) for _ in range(10)), return_exceptions=True
    )

    assert {type(one) for one in ended} == {BrokerError}
    assert len(answers) == 1
