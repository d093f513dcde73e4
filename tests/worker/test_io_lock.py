"""The I/O lock: no thread waits while it holds the lock, and the endpoint responds without it."""

from __future__ import annotations

import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import is_empty, publish
from workqueue import Message
from workqueue.amqp.io_loop import Loop
from workqueue.contract import topology
from workqueue.contract.binding import from_url
from workqueue.worker.config import PythonHandler, RunConfig
from workqueue.worker.endpoint_port import EndpointPort
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import RetryPolicy
from workqueue.worker.runtime import Runtime

MIB = 1024 * 1024


@contextmanager
def running(url: str, call: Callable[[Message], object], slots: int) -> Iterator[Runtime]:
    """A worker in this process."""
    config = RunConfig(
        handler=PythonHandler("m:f"),
        queue_settings=topology.QueueSettings("jobs"),
        declare=True,
        retry=RetryPolicy(5, (1,)),
        delivery_limit=None,
        wake_deliveries=0,
        timeout_seconds=60.0,
        concurrency=slots,
        grace_seconds=60.0,
        port=0,
        port_is_default=False,
        url=url,
        binding_folder=None,
        pod_uid=None,
        worker_name="pod",
        log_format=None,
        log_level="INFO",
        heartbeat_seconds=None,
        termination_log=None,  # type: ignore[arg-type]
    )
    runtime = Runtime(config, lambda: from_url(url))
    runtime.start(Handler("m:f", call))
    try:
        yield runtime
    finally:
        runtime.stop_taking()
        runtime.deliveries.cancel_handlers()
        runtime.deliveries.hand_back()
        runtime.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stacks of threads that waited while they held the lock of an I/O loop."""
    found: list[str] = []
    loops: list[Loop] = []
    here = threading.local()

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            released = getattr(arguments[0], "_lock", None) if arguments else None
            held = [loop for loop in loops if loop.lock._is_owned() and loop.lock is not released]  # type: ignore[attr-defined]
            if held and not getattr(here, "starts_a_thread", False):
                found.append("".join(traceback.format_stack(limit=12)))
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    def remembered(loop: Loop, *arguments: Any) -> None:
        init(loop, *arguments)
        loops.append(loop)

    def started(thread: threading.Thread) -> None:
        # This waits only for the kernel, which starts the new thread.
        here.starts_a_thread = True
        try:
            start(thread)
        finally:
            here.starts_a_thread = False

    init, start = Loop.__init__, threading.Thread.start
    monkeypatch.setattr(Loop, "__init__", remembered)
    monkeypatch.setattr(threading.Thread, "start", started)
    # Events, queues, futures and windows all wait in a Condition.
    watch(threading.Condition, "wait")
    watch(threading.Thread, "join")
    watch(time, "sleep")
    return found


def test_no_wait_happens_under_the_io_lock(vhost: VirtualHost, waits: list[str]) -> None:
    """More copies than a publisher keeps unconfirmed, during a memory alarm; a retirement; a lost connection."""
    count, begun, alarm = 6, [], threading.Event()

    def handle(message: Message) -> None:
        begun.append(message.attempt)
        if message.attempt == 1:
            alarm.wait()
            raise ValueError("the first time")

    with running(vhost.url, handle, count + 1) as runtime:
        eventually(lambda: runtime.consumer.consuming)
        publish(vhost, *[b"x" * (12 * MIB)] * count)
        eventually(lambda: len(begun) == count, 60)
        with vhost.broker.memory_alarm():
            alarm.set()
            publisher = eventually(lambda: runtime.deliveries._publisher)
            eventually(lambda: publisher.pending == count or waits)
            eventually(lambda: publisher.blocked or waits)
            assert runtime.consumer.retire(1.0) == count
        eventually(lambda: runtime.deliveries.outcomes.total() == 2 * count or waits, 60)
        eventually(lambda: runtime.consumer.busy() == 0 or waits)
        vhost.broker.close_connections()
        eventually(lambda: (runtime.consumer.consuming and runtime.consumer.reconnects == 1) or waits)
        eventually(lambda: runtime.consumer.retire(10.0) == 0 or waits)

    assert not waits, f"{len(waits)} waits, the first:\n{waits[0]}"
    eventually(lambda: is_empty(vhost))


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/status", "/metrics"])
def test_endpoint_answers_while_the_io_lock_is_held(path: str) -> None:
    with running("amqp://127.0.0.1:1", lambda _message: None, 2) as runtime:
        endpoint = EndpointPort(runtime, 0, any_port_will_do=True)
        endpoint.start()
        try:
            with (
                runtime.consumer.connection.loop.lock,
                urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}{path}", timeout=20) as answer,
            ):
                assert answer.status == 200
        finally:
            endpoint.close()
