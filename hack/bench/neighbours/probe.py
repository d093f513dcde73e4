"""Wake the healthy WorkQueue and scale it in, many times: `python -m hack.bench.neighbours.probe JSON`.

A process of its own, so that the threads of a disturbance do not delay its clock. It prints one JSON line for each
cycle. A cycle is: publish one message, see the count above 0, take and acknowledge the message as a worker would, see
the count at 0, see the doorbell. Before each cycle, a bare consumer does the same work as a wake at least is, so that
the share of the broker, the API server and the machine is known.
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
        bare: the time of the bare consumer.
        wake: from the publish to the count above 0, as the watch shows it; None: not within WAKE_SECONDS.
        scale_in: from the acknowledgement to the count 0; None: not within SCALE_IN_SECONDS.
        asleep: from the count 0 to the installed doorbell; None: not within SCALE_IN_SECONDS.
    """

    bare: float
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


class BareConsumer:
    """A consumer that writes each message's number into a Deployment: the least that a wake takes.

    It has connections of its own, and its queue is of the type that a WorkQueue's queue has.
    """

    def __init__(self, task: Task) -> None:
        self._api = Api(Path(task.folder))
        self._name = f"{task.name}-bare"
        self._path = f"/apis/apps/v1/namespaces/{task.namespace}/deployments/{self._name}"
        labels = {"app": self._name}
        pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "none", "image": "none"}]}}
        spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}
        metadata = {"name": self._name, "namespace": task.namespace}
        self._api.apply(
            self._path, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        )
        self._deployment = Deployment(self._api, task.namespace, self._name)
        self._connection = _connected(task.url)
        self._channel = self._connection.channel()
        self._channel.queue_declare(self._name, durable=True, arguments={"x-queue-type": "quorum"})
        self._number = 0
        threading.Thread(target=self._consume, args=[_connected(task.url)], daemon=True).start()

    def measure(self) -> float:
        """Return the seconds from the publish of a message to its number, as the watch shows it.

        Raises:
            TimeoutError: it took more than WAKE_SECONDS.
        """
        self._number += 1
        number, begun = str(self._number), time.monotonic()
        self._channel.basic_publish("", self._name, number.encode(), pika.BasicProperties(delivery_mode=2))
        seen = self._deployment.wait(
            lambda body: body["metadata"].get("annotations", {}).get("bench/number") == number, WAKE_SECONDS
        )
        if seen is None:
            raise TimeoutError(f"the bare consumer took more than {WAKE_SECONDS:.0f} s")
        return seen - begun

    def _consume(self, connection: pika.BlockingConnection) -> None:
        channel = connection.channel()
        for method, _, body in channel.consume(self._name, auto_ack=False):
            self._api.merge(self._path, {"metadata": {"annotations": {"bench/number": body.decode()}}})
            channel.basic_ack(method.delivery_tag)


class Probe:
    """Runs the cycles."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._deployment = Deployment(Api(Path(task.folder)), task.namespace, f"{task.name}-worker")
        self._bare = BareConsumer(task)
        self._connection = _connected(task.url)
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
        bare = self._bare.measure()
        begun = time.monotonic()
        properties = pika.BasicProperties(delivery_mode=2)
        self._channel.basic_publish("", self._task.name, b"x" * 100, properties, mandatory=True)
        woken = self._deployment.wait(lambda body: _replicas(body) > 0, WAKE_SECONDS)
        if woken is None:
            return Cycle(bare, None)
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
            return Cycle(bare, wake)
        asleep = self._await_asleep()
        return Cycle(bare, wake, ended - acknowledged, None if asleep is None else asleep - ended)

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


def _connected(url: str) -> pika.BlockingConnection:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    return pika.BlockingConnection(parameters)


def _replicas(body: Object) -> int:
    return int(body["spec"].get("replicas", 1))


def main() -> None:
    """Run one task and print its cycles."""
    for cycle in Probe(Task(**json.loads(sys.argv[1]))).cycles():
        print(json.dumps(asdict(cycle)), flush=True)


if __name__ == "__main__":
    main()
