"""Lifespan, middleware, failure hook, typed payload and answers in real workers, in threads and in processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pika
import pytest

from tests.support.rabbitmq import Broker, VirtualHost
from tests.support.wait import eventually
from tests.support.worker import Worker, Workers, is_empty, publish, take_all

PATIENCE: Final = 60.0

SYNC: Final = """
import os, threading, workqueue
from pydantic import BaseModel

class Job(BaseModel):
    do: str
    reply: str = ""

@workqueue.lifespan
def pool():
    print(f"opened {threading.current_thread().name}", flush=True)
    yield "pool"
    print("closed", flush=True)

@workqueue.middleware
def around(message, call_next):
    print("before", flush=True)
    call_next(message)
    print("after", flush=True)

@workqueue.on_failure
def failed(message, error, final):
    print(f"failed {type(error).__name__} {final} {threading.current_thread().name}", flush=True)

def handle(job: Job, message: workqueue.Message):
    print(f"handled {job.do} {message.context}", flush=True)
    if job.do == "fail":
        raise ValueError("it went wrong")
    if job.do == "wait":
        message.cancelled.wait()
    if job.do == "reply":
        message.reply({"answer": 42})
    if job.do == "reply or give up":
        try:
            message.reply({"answer": 42})
        except workqueue.Returned as error:
            raise workqueue.Reject(f"not delivered: {error}")
"""

ASYNC: Final = """
import asyncio, threading, workqueue
from pydantic import BaseModel

class Job(BaseModel):
    do: str
    reply: str = ""

@workqueue.lifespan
async def pool():
    loop = asyncio.get_running_loop()
    keeps_running = asyncio.create_task(asyncio.sleep(3600))
    print(f"opened {threading.current_thread().name}", flush=True)
    yield loop
    print("closed" if not keeps_running.done() else "closed late", flush=True)

@workqueue.middleware
async def around(message, call_next):
    print("before", flush=True)
    await call_next(message)
    print("after", flush=True)

@workqueue.on_failure
async def failed(message, error, final):
    await asyncio.sleep(0)
    print(f"failed {type(error).__name__} {final} {threading.current_thread().name}", flush=True)

async def handle(job: Job, message: workqueue.Message):
    same = "pool" if message.context is asyncio.get_running_loop() else "another loop"
    print(f"handled {job.do} {same}", flush=True)
    if job.do == "fail":
        raise ValueError("it went wrong")
    if job.do == "wait":
        await asyncio.sleep(3600)
    if job.do == "reply":
        await message.reply({"answer": 42})
    if job.do == "reply or give up":
        try:
            await message.reply({"answer": 42})
        except workqueue.Returned as error:
            raise workqueue.Reject(f"not delivered: {error}")
"""

MODES: Final = {
    "sync-in-threads": (SYNC, "Thread"),
    "async-in-threads": (ASYNC, "Thread"),
    "sync-in-processes": (SYNC, "Process"),
    "async-in-processes": (ASYNC, "Process"),
}
BY_DAY: Final = {"sync-in-threads", "async-in-processes"}
"""With both, each kind of handler and each isolation has run. `make slow` runs all."""

modes = pytest.mark.parametrize(
    ("source", "isolation"),
    [pytest.param(*MODES[name], id=name, marks=() if name in BY_DAY else pytest.mark.slow) for name in MODES],
)
word_modes = pytest.mark.parametrize(
    ("word", "isolation"),
    [
        pytest.param("", "Thread", id="sync-in-threads"),
        pytest.param("async ", "Process", id="async-in-processes"),
        pytest.param("async ", "Thread", id="async-in-threads", marks=pytest.mark.slow),
        pytest.param("", "Process", id="sync-in-processes", marks=pytest.mark.slow),
    ],
)

Start = Callable[..., Worker]


@pytest.fixture
def start(vhost: VirtualHost, workers: Workers, tmp_path: Path) -> Start:
    """Start a worker on the queue `jobs` whose handler's module has this source."""

    def start(source: str, isolation: str, *arguments: str, url: str = vhost.url) -> Worker:
        (tmp_path / "hooked.py").write_text(source)
        return workers.start(
            url,
            *("--isolation", isolation, *arguments),
            handler="hooked:handle",
            environment={"PYTHONPATH": f"{tmp_path}:worker"},
        )

    return start


def printed(worker: Worker) -> list[str]:
    """What the handler's module printed: as lines in threads, as log entries in processes."""
    lines = [line for line in worker.log.splitlines() if not line.startswith("{")]
    return lines + [one["message"] for one in worker.log_entries if one["logger"] == "stdout"]


def words(worker: Worker, beginning: str) -> list[str]:
    """The lines with this beginning, without the names of threads."""
    return [line for line in printed(worker) if line.startswith(beginning)]


def wait_consuming(worker: Worker) -> None:
    eventually(lambda: worker.status()["consuming"], PATIENCE)


@modes
def test_lifespan_is_open_from_before_the_first_to_after_the_last_message(
    vhost: VirtualHost, start: Start, source: str, isolation: str
) -> None:
    worker = start(source, isolation)
    wait_consuming(worker)
    publish(vhost, {"do": "one"}, {"do": "two"})
    eventually(lambda: worker.outcomes() == {"acked": 2}, PATIENCE)

    assert worker.stop(60) == 0

    first, *handled, last = [line for line in printed(worker) if line not in {"before", "after"}]
    assert first.startswith("opened ")
    assert handled == ["handled one pool", "handled two pool"]
    assert last == "closed"


def test_each_process_of_a_sync_handler_has_its_own_lifespan(vhost: VirtualHost, start: Start) -> None:
    worker = start(SYNC, "Process", "--concurrency", "3")
    eventually(lambda: vhost.exists("jobs") and len(words(worker, "opened")) == 3, PATIENCE)

    assert worker.stop(60) == 0

    assert len(words(worker, "closed")) == 3


def test_threads_of_a_sync_handler_share_one_lifespan(vhost: VirtualHost, start: Start) -> None:
    worker = start(SYNC, "Thread", "--concurrency", "3")
    wait_consuming(worker)

    assert worker.stop(60) == 0

    assert (len(words(worker, "opened")), len(words(worker, "closed"))) == (1, 1)


UNOPENED: Final = {
    "raises": (
        'raise OSError("no database")\n    yield\n',
        "The handler hooked:handle cannot be loaded: its lifespan pool failed: OSError: no database",
    ),
    "takes-too-long": (
        "import time; time.sleep(3600)\n    yield\n",
        "The handler hooked:handle cannot be loaded: its import and lifespan took longer than 2 s.",
    ),
}


@pytest.mark.parametrize(("body", "reason"), UNOPENED.values(), ids=UNOPENED.keys())
@word_modes
def test_lifespan_that_cannot_be_opened_ends_the_worker_before_any_message(
    vhost: VirtualHost, start: Start, word: str, isolation: str, body: str, reason: str
) -> None:
    source = f"import workqueue\n@workqueue.lifespan\n{word}def pool():\n    {body}\n{word}def handle(message): ...\n"
    with vhost.connect() as connection:
        connection.channel().queue_declare("jobs", durable=True, arguments={"x-queue-type": "quorum"})
    publish(vhost, {"id": 1})

    worker = start(source, isolation, "--startup-timeout", "2" if "sleep" in body else "60")

    assert worker.wait(120) == 3
    said = worker.termination_log.read_text()
    assert said.startswith(reason)
    assert len(said.splitlines()) == 1
    assert vhost.depth("jobs").ready == 1


@word_modes
def test_worker_is_alive_and_not_ready_while_its_lifespan_opens(
    vhost: VirtualHost, start: Start, tmp_path: Path, word: str, isolation: str
) -> None:
    gate, pause = tmp_path / "gate", "await asyncio.sleep(0.05)" if word else "time.sleep(0.05)"
    worker = start(
        "import asyncio, os, time, workqueue\n"
        f"@workqueue.lifespan\n{word}def pool():\n"
        f"    open({str(tmp_path / 'begun')!r}, 'w').close()\n"
        f"    while not os.path.exists({str(gate)!r}):\n        {pause}\n    yield\n"
        f"{word}def handle(message): ...\n",
        isolation,
    )
    eventually((tmp_path / "begun").exists, PATIENCE)

    assert worker.request("/livez")[0] == 200
    assert worker.request("/readyz")[0] == 503
    assert not worker.status()["consuming"]
    gate.touch()

    wait_consuming(worker)
    assert worker.request("/readyz")[0] == 200
    publish(vhost, {"id": 1})
    eventually(lambda: worker.outcomes() == {"acked": 1}, PATIENCE)


ENDS_EARLY: Final = """
import asyncio, workqueue
from pathlib import Path
mark = Path(__file__).with_name("listened")

async def listens():
    if not mark.exists():
        mark.touch()
        raise OSError("the listener is gone")
    await asyncio.sleep(3600)

@workqueue.lifespan
async def listener():
    async with asyncio.TaskGroup() as group:
        task = group.create_task(listens())
        yield
        task.cancel()

async def handle(message): ...
"""


def test_lifespan_that_ends_early_ends_the_worker(start: Start) -> None:
    worker = start(ENDS_EARLY, "Thread")

    assert worker.wait(60) == 1

    assert worker.termination_log.read_text() == "The lifespan listener has ended before the worker.\n"
    assert "OSError: the listener is gone" in worker.log


def test_process_whose_lifespan_ends_early_is_replaced(vhost: VirtualHost, start: Start) -> None:
    worker = start(ENDS_EARLY, "Process")
    ended = "A process of the handler has ended between two messages; starting another."
    eventually(lambda: worker.count_log(ended) == 1, PATIENCE)

    wait_consuming(worker)
    publish(vhost, {"id": 1})

    eventually(lambda: worker.outcomes() == {"acked": 1}, PATIENCE)
    assert worker.stop(60) == 0


@word_modes
def test_failure_while_closing_is_logged_and_keeps_the_exit_code(
    vhost: VirtualHost, start: Start, word: str, isolation: str
) -> None:
    source = (
        "import workqueue\n@workqueue.lifespan\n"
        f"{word}def pool():\n    yield\n    raise OSError('the pool is gone')\n"
        f"{word}def handle(message): ...\n"
    )
    worker = start(source, isolation)
    wait_consuming(worker)

    assert worker.stop(60) == 0

    [entry] = [one for one in worker.log_entries if one["message"] == "A lifespan has failed."]
    assert entry["lifespan"] == "pool"
    assert "OSError: the pool is gone" in entry["exception"]


@modes
def test_failure_hook_runs_beside_the_handler_after_each_failure(
    vhost: VirtualHost, start: Start, source: str, isolation: str
) -> None:
    worker = start(source, isolation, "--max-attempts", "2")
    wait_consuming(worker)

    publish(vhost, {"do": "fail"})

    eventually(lambda: worker.outcomes() == {"retried": 1, "dead_lettered": 1}, PATIENCE)
    failures = [["failed", "ValueError", "False"], ["failed", "ValueError", "True"]]
    eventually(lambda: [line.split()[:3] for line in words(worker, "failed")] == failures)
    assert words(worker, "after") == []


@modes
def test_failure_hook_learns_of_a_timeout(
    vhost: VirtualHost, start: Start, source: str, isolation: str
) -> None:
    worker = start(source, isolation, "--max-attempts", "1", "--timeout", "1")
    wait_consuming(worker)

    publish(vhost, {"do": "wait"})

    eventually(lambda: worker.outcomes() == {"timed_out": 1}, PATIENCE)
    eventually(lambda: words(worker, "failed HandlerTimeout True"), PATIENCE)


@modes
def test_body_that_is_not_valid_is_dead_lettered_with_the_mistake(
    vhost: VirtualHost, start: Start, source: str, isolation: str
) -> None:
    worker = start(source, isolation)
    wait_consuming(worker)

    publish(vhost, {"no": "job"})

    eventually(lambda: worker.outcomes() == {"dead_lettered": 1}, PATIENCE)
    [(properties, _)] = take_all(vhost, "jobs.dead")
    assert properties.headers["x-workqueue-failure-reason"] == "Undecodable"
    assert (
        properties.headers["x-workqueue-failure-message"]
        == "The body is not a valid Job: do: Field required."
    )
    assert properties.headers["x-workqueue-attempt"] == 1


@modes
def test_answer_is_in_its_queue_when_the_message_is_acknowledged(
    vhost: VirtualHost, start: Start, source: str, isolation: str
) -> None:
    with vhost.connect() as connection:
        connection.channel().queue_declare("answers", durable=True)
    worker = start(source, isolation)
    wait_consuming(worker)

    publish(vhost, {"do": "reply"}, reply_to="answers", correlation_id="c-1")

    eventually(lambda: worker.outcomes() == {"acked": 1}, PATIENCE)
    [(properties, body)] = take_all(vhost, "answers")
    assert body == b'{"answer":42}'
    assert (properties.correlation_id, properties.content_type) == ("c-1", "application/json")
    assert worker.stop(60) == 0


@modes
def test_answer_to_a_missing_queue_is_an_exception_of_the_handler(
    vhost: VirtualHost, start: Start, source: str, isolation: str
) -> None:
    worker = start(source, isolation)
    wait_consuming(worker)

    publish(vhost, {"do": "reply or give up"}, reply_to="gone", correlation_id="c-1")

    eventually(lambda: worker.outcomes() == {"dead_lettered": 1}, PATIENCE)
    [(properties, _)] = take_all(vhost, "jobs.dead")
    assert "not delivered" in properties.headers["x-workqueue-failure-message"]
    assert "to queue gone was returned" in properties.headers["x-workqueue-failure-message"]


@modes
def test_unconfirmed_answer_keeps_the_message(
    vhost: VirtualHost, start: Start, source: str, isolation: str
) -> None:
    with vhost.connect() as connection:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        connection.channel().queue_declare("answers", durable=True, arguments=arguments)
    publish(vhost, b"full", queue="answers")
    worker = start(source, isolation)
    wait_consuming(worker)

    publish(vhost, {"do": "reply"}, reply_to="answers")
    eventually(lambda: worker.outcomes()["retried"] >= 1, PATIENCE)
    take_all(vhost, "answers")

    eventually(lambda: worker.outcomes()["acked"] == 1, PATIENCE)
    assert len(take_all(vhost, "answers")) == 1


def test_direct_reply_to_is_answered(every_rabbitmq: Broker, start: Start) -> None:
    with every_rabbitmq.new_vhost() as vhost, vhost.connect() as connection:
        worker = start(SYNC, "Thread", url=vhost.url)
        wait_consuming(worker)
        answers: list[tuple[pika.BasicProperties, bytes]] = []
        channel = connection.channel()
        channel.basic_consume(
            "amq.rabbitmq.reply-to",
            lambda _channel, _method, properties, body: answers.append((properties, body)),
            auto_ack=True,
        )
        properties = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id="c-1")
        channel.basic_publish("", "jobs", b'{"do": "reply or give up"}', properties)

        def has_answer() -> bool:
            connection.process_data_events(time_limit=0.1)
            return bool(answers)

        eventually(has_answer, PATIENCE)
        [(found, body)] = answers
        assert (found.correlation_id, body) == ("c-1", b'{"answer":42}')
        eventually(lambda: worker.outcomes() == {"acked": 1}, PATIENCE)
        eventually(lambda: is_empty(vhost))
        assert worker.stop(60) == 0
