"""Wake the healthy WorkQueue and scale it in, many times: `python -m hack.bench.neighbours.probe JSON`.

A process of its own, so that the threads of a disturbance do not delay its clock. It prints one JSON line for each
cycle. A cycle is: publish one message, see the count above 0, take and acknowledge the message as a worker would, see
the count at 0, see the doorbell.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pika

from tests.support.controlplane import Api

Object = dict[str, Any]

WAKE_SECONDS: Final = 60.0
READY_SECONDS: Final = 60.0
SCALE_IN_SECONDS: Final = 120.0
PAUSE: Final = (0.05, 0.3)
LOOK_EVERY: Final = 0.01


@dataclass(frozen=True)
class Task:
    """What to do.

    Attributes:
        folder: of the control plane.
        namespace, name: of the WorkQueue. Its queue has the same name.
        url: the AMQP URL of its virtual host.
        cycles: how many at most.
        seconds: begin no cycle later than this.
    """

    folder: str
    namespace: str
    name: str
    url: str
    cycles: int
    seconds: float


@dataclass(frozen=True)
class Cycle:
    """The result of one cycle, in seconds.

    Attributes:
        wake: from the publish to the count above 0, as the watch shows it; None: not within WAKE_SECONDS.
        scale_in: from the acknowledgement to the count 0; None: not within SCALE_IN_SECONDS.
        asleep: from the count 0 to the installed doorbell; None: not within SCALE_IN_SECONDS.
    """

    wake: float | None
    scale_in: float | None = None
    asleep: float | None = None

    @property
    def complete(self) -> bool:
        """Return whether the WorkQueue was woken and scaled in."""
        return None not in {self.wake, self.scale_in, self.asleep}


class Deployment:
    """Follows one Deployment with a watch."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        self._name = name
        self._changed = threading.Condition()
        self._body: Object = {}
        self._at = 0.0
        threading.Thread(target=self._follow, daemon=True).start()

    def wait(self, condition: Callable[[Object], bool], seconds: float) -> float | None:
        """Wait until the Deployment fulfils a condition. Return when it was seen; None when it did not in time."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not (self._body and condition(self._body)):
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            return self._at

    def _follow(self) -> None:
        while True:
            connection = self._api.connect(3600)
            query = f"watch=1&fieldSelector=metadata.name%3D{self._name}&timeoutSeconds=3600"
            connection.request("GET", f"{self._path}?{query}", headers=self._api.headers())
            response = connection.getresponse()
            while line := response.readline():
                at, event = time.monotonic(), json.loads(line)
                if event["type"] in {"ADDED", "MODIFIED"}:
                    with self._changed:
                        self._body, self._at = event["object"], at
                        self._changed.notify_all()
            connection.close()


class Probe:
    """Runs the cycles."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._deployment = Deployment(Api(Path(task.folder)), task.namespace, f"{task.name}-worker")
        parameters = pika.URLParameters(task.url)
        parameters.heartbeat = 0
        self._connection = pika.BlockingConnection(parameters)
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def cycles(self) -> Iterator[Cycle]:
        """Run all cycles. The first one that does not complete is the last."""
        deadline = time.monotonic() + self._task.seconds
        self._await_asleep()
        for _ in range(self._task.cycles):
            self._pause(random.uniform(*PAUSE))
            done = self._cycle()
            yield done
            if not done.complete or time.monotonic() > deadline:
                return

    def _cycle(self) -> Cycle:
        begun = time.monotonic()
        properties = pika.BasicProperties(delivery_mode=2)
        self._channel.basic_publish("", self._task.name, b"x" * 100, properties, mandatory=True)
        woken = self._deployment.wait(lambda body: _replicas(body) > 0, WAKE_SECONDS)
        if woken is None:
            return Cycle(None)
        wake = woken - begun
        self._deployment.wait(
            lambda body: int(body.get("status", {}).get("readyReplicas", 0)) > 0, READY_SECONDS
        )
        with self._worker() as taken:
            deadline = time.monotonic() + WAKE_SECONDS
            while not taken and time.monotonic() < deadline:
                self._pause(LOOK_EVERY)
            acknowledged = time.monotonic()
            ended = self._deployment.wait(lambda body: _replicas(body) == 0, SCALE_IN_SECONDS)
        if ended is None or not taken:
            return Cycle(wake)
        asleep = self._await_asleep()
        return Cycle(wake, ended - acknowledged, None if asleep is None else asleep - ended)

    @contextmanager
    def _worker(self) -> Iterator[list[int]]:
        """Consume as a worker does, while the context lasts. Yields the delivery tags."""
        taken: list[int] = []

        def take(channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
            channel.basic_ack(method.delivery_tag)
            taken.append(method.delivery_tag)

        channel = self._connection.channel()
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(self._task.name, take)
        try:
            yield taken
        finally:
            channel.close()

    def _await_asleep(self) -> float | None:
        """Wait until no worker is left and the doorbell is installed. Return when."""
        deadline = time.monotonic() + SCALE_IN_SECONDS
        gone = self._deployment.wait(
            lambda body: _replicas(body) == 0 and not body.get("status", {}).get("replicas"), SCALE_IN_SECONDS
        )
        while gone is not None and time.monotonic() < deadline:
            counts = self._channel.queue_declare(self._task.name, passive=True).method
            if counts.consumer_count == 1 and counts.message_count == 0:
                return time.monotonic()
            self._pause(LOOK_EVERY)
        return None

    def _pause(self, seconds: float) -> None:
        self._connection.process_data_events(seconds)


def _replicas(body: Object) -> int:
    return int(body["spec"].get("replicas", 1))


def main() -> None:
    """Run one task and print its cycles."""
    for cycle in Probe(Task(**json.loads(sys.argv[1]))).cycles():
        print(json.dumps(asdict(cycle)), flush=True)


if __name__ == "__main__":
    main()
