"""The probe: publish messages and watch the effects from a pod of the cluster, on one clock.

`probe` starts this module with `kubectl exec` and sends one JSON command per line. Each answer is one JSON line.
The module needs only pika and the standard library, which the project's image has. Times are seconds on the
monotonic clock since the boot, which is the same in every pod of a node. Durations are in seconds.
"""

from __future__ import annotations

import http.client
import json
import random
import ssl
import sys
import threading
import time
import traceback
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pika

Object = dict[str, Any]

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST: Final = "kubernetes.default.svc"
WORKQUEUES: Final = "/apis/workqueue.dev/v1alpha1/namespaces/{}/workqueues"
DEPLOYMENTS: Final = "/apis/apps/v1/namespaces/{}/deployments"
PODS: Final = "/api/v1/namespaces/{}/pods"
THREADS: Final = 8
POLL_SECONDS: Final = 0.02


def now() -> float:
    """Return the time on the clock of all figures."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Api:
    """A client of the API server, with one connection for each thread."""

    def __init__(self) -> None:
        self._context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._local = threading.local()

    def connect(self, timeout: float) -> http.client.HTTPSConnection:
        """Return a new connection."""
        return http.client.HTTPSConnection(HOST, timeout=timeout, context=self._context)

    def call(self, method: str, path: str, body: Object | None = None) -> Object:
        """Send one request. A refusal raises RuntimeError with the answer."""
        try:
            response, text = self._exchange(method, path, body)
        except ConnectionError:
            # The server closes idle connections.
            del self._local.connection
            if method != "GET":
                raise
            response, text = self._exchange(method, path, body)
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {response.status} {text[:500]!r}")
        answer: Object = json.loads(text)
        return answer

    def _exchange(
        self, method: str, path: str, body: Object | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        if not hasattr(self._local, "connection"):
            self._local.connection = self.connect(60)
        connection = self._local.connection
        connection.request(method, path, json.dumps(body) if body is not None else None, self.headers())
        response = connection.getresponse()
        return response, response.read()

    def text(self, path: str) -> str:
        """GET a resource that is not JSON."""
        connection = self.connect(30)
        connection.request("GET", path, headers=self.headers())
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    @staticmethod
    def headers() -> dict[str, str]:
        """Return the headers with the current token."""
        return {
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/json",
        }


class Watch:
    """Follows one kind of object in a thread, keeps the latest of each name, and calls `take` for each event."""

    def __init__(self, api: Api, path: str, take: Callable[[float, str, Object], None]) -> None:
        self._api = api
        self._path = path
        self._take = take
        self.objects: dict[str, Object] = {}
        threading.Thread(target=self._run, name=path, daemon=True).start()

    def _run(self) -> None:
        while True:
            connection = self._api.connect(3600)
            connection.request(
                "GET", f"{self._path}?watch=1&timeoutSeconds=3600", headers=self._api.headers()
            )
            response = connection.getresponse()
            while line := response.readline():
                at = now()
                self._event(at, json.loads(line))
            connection.close()

    def _event(self, at: float, event: Object) -> None:
        if event["type"] not in {"ADDED", "MODIFIED", "DELETED"}:
            return
        body = event["object"]
        name = body["metadata"]["name"]
        self._take(at, event["type"], body)
        if event["type"] == "DELETED":
            self.objects.pop(name, None)
        else:
            self.objects[name] = body


class Probe:
    """The commands, each a method whose name starts with `do_`."""

    def __init__(self, namespace: str, system: str, amqp: Object) -> None:
        self._namespace = namespace
        self._system = system
        self._api = Api()
        self._writes: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._ready: dict[str, float] = {}
        self._pods: dict[str, list[Object]] = defaultdict(list)
        self._deployments = Watch(self._api, DEPLOYMENTS.format(namespace), self._on_deployment)
        self._workqueues = Watch(self._api, WORKQUEUES.format(namespace), self._on_workqueue)
        self._pod_watch = Watch(self._api, PODS.format(namespace), self._on_pod)
        credentials = pika.PlainCredentials(amqp["username"], amqp["password"])
        parameters = pika.ConnectionParameters(amqp["host"], credentials=credentials, heartbeat=0)
        connection = pika.BlockingConnection(parameters)
        self._channel, self._fast = connection.channel(), connection.channel()
        self._channel.confirm_delivery()

    # -- event handlers of the watches ----------------------------------------------------------------

    def _on_deployment(self, at: float, event: str, body: Object) -> None:
        name = body["metadata"]["name"]
        if event == "DELETED":
            self._writes.pop(name, None)
            return
        replicas, known = body["spec"].get("replicas", 1), self._writes[name]
        if not known or known[-1][1] != replicas:
            known.append((at, replicas))

    def _on_workqueue(self, at: float, event: str, body: Object) -> None:
        name = body["metadata"]["name"]
        conditions = {c["type"]: c["status"] for c in body.get("status", {}).get("conditions", [])}
        if event == "DELETED" or conditions.get("Ready") != "True":
            self._ready.pop(name, None)
        else:
            self._ready.setdefault(name, at)

    def _on_pod(self, at: float, event: str, body: Object) -> None:
        workqueue = body["metadata"].get("labels", {}).get("workqueue.dev/workqueue")
        if workqueue:
            status = body.get("status", {})
            conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
            step = {
                "at": at,
                "event": event,
                "pod": body["metadata"]["name"],
                "scheduled": bool(body["spec"].get("nodeName")),
                "ready": conditions.get("Ready") == "True",
            }
            self._pods[workqueue].append(step)

    # -- helpers -------------------------------------------------------------------------------------

    def _replicas(self, queue: str) -> int:
        body = self._deployments.objects.get(f"{queue}-worker")
        return -1 if body is None else int(body["spec"].get("replicas", 1))

    def _asleep(self, queue: str, *, doorbell: bool = True) -> bool:
        """Return whether the queue has no replica, no pod and no message, and a doorbell if it should have one."""
        pods = any(
            body["metadata"].get("labels", {}).get("workqueue.dev/workqueue") == queue
            for body in list(self._pod_watch.objects.values())
        )
        if self._replicas(queue) != 0 or pods:
            return False
        answer = self._channel.queue_declare(queue, passive=True).method
        return bool(answer.consumer_count == int(doorbell) and answer.message_count == 0)

    def _wait_asleep(self, queue: str, seconds: float, *, doorbell: bool = True) -> None:
        _until(lambda: self._asleep(queue, doorbell=doorbell), seconds, f"{queue} is asleep")

    def _publish(self, queue: str, count: int = 1, body: bytes = b"x" * 100) -> tuple[float, float]:
        """Publish persistent, confirmed messages. Return the start and the time of the last confirmation."""
        begun = now()
        for _ in range(count):
            self._channel.basic_publish(
                "", queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True
            )
        return begun, now()

    def _changes(self, queue: str, since: float) -> list[tuple[float, int]]:
        known = self._writes.get(f"{queue}-worker", [])
        return [(at - since, replicas) for at, replicas in list(known) if at >= since]

    def _wait_replicas(self, queue: str, since: float, least: int, seconds: float) -> float:
        def reached() -> float | None:
            return next((after for after, count in self._changes(queue, since) if count >= least), None)

        return float(_until(reached, seconds, f"{queue} has {least} replicas", pause=0.002))

    # -- commands ------------------------------------------------------------------------------------

    def do_create(self, names: list[str], spec: Object, seconds: float) -> Object:
        """Create WorkQueues as fast as the API server accepts them, and wait until all are Ready."""
        path = WORKQUEUES.format(self._namespace)
        bodies = [
            {
                "apiVersion": "workqueue.dev/v1alpha1",
                "kind": "WorkQueue",
                "metadata": {"name": name},
                "spec": spec,
            }
            for name in names
        ]
        begun = now()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda body: self._api.call("POST", path, body), bodies))
        posted = now() - begun

        def all_ready() -> bool:
            return all(name in self._ready for name in names)

        _until(all_ready, seconds, f"all {len(names)} WorkQueues are Ready", pause=0.1)
        ready = sorted(self._ready[name] - begun for name in names)
        return {"posted": posted, "first": ready[0], "half": ready[len(ready) // 2], "all": ready[-1]}

    def do_delete(self, names: list[str], seconds: float) -> float:
        """Delete WorkQueues, and wait until they and their Deployments are gone."""
        path, begun = WORKQUEUES.format(self._namespace), now()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: self._api.call("DELETE", f"{path}/{name}"), names))
        gone = {f"{name}-worker" for name in names}
        _until(lambda: not gone & self._deployments.objects.keys(), seconds, "the Deployments are gone")
        for name in names:
            for queue in (name, f"{name}.dead"):
                self._channel.queue_delete(queue)
        return now() - begun

    def do_wait_asleep(self, names: list[str], seconds: float, doorbell: bool = True) -> float:
        """Wait until each queue has no replica, and a doorbell if it should have one."""
        begun = now()
        for name in names:
            self._wait_asleep(name, seconds, doorbell=doorbell)
        return now() - begun

    def do_wake(self, names: list[str], pause: list[float], doorbell: bool = True) -> list[float]:
        """Publish one message to one idle queue after another. Return each time from publish to the seen write.

        Args:
            pause: shortest and longest pause before a sample, after the previous queue is asleep.
            doorbell: the operator has a doorbell on the queues; otherwise it polls them.
        """
        samples = []
        for name in names:
            self._wait_asleep(name, 60, doorbell=doorbell)
            time.sleep(random.uniform(*pause))
            begun, _ = self._publish(name)
            samples.append(self._wait_replicas(name, begun, 1, 60))
            self._channel.queue_purge(name)
            self._wait_asleep(name, 60, doorbell=doorbell)
        return samples

    def do_wake_together(self, names: list[str], seconds: float, settled: bool) -> Object:
        """Publish one message to each idle queue as fast as possible, and later purge the queues.

        Args:
            settled: purge only after Kubernetes has created the pods.

        Returns:
            For each queue, the time from the message to the written count, and from the purge to the written 0.
        """
        self.do_wait_asleep(names, seconds)
        begun, published = now(), {}
        for name in names:
            published[name] = now()
            self._fast.basic_publish("", name, b"x" * 100, pika.BasicProperties(delivery_mode=2))
        sent = now() - begun
        written = [self._wait_replicas(name, at, 1, seconds) for name, at in published.items()]
        if settled:
            self._wait_settled(names, seconds)
        purged = {}
        for name in names:
            purged[name] = now()
            self._channel.queue_purge(name)
        back = [self._wait_zero(name, at, seconds) for name, at in purged.items()]
        self.do_wait_asleep(names, seconds)
        return {"sent": sent, "written": written, "back": back}

    def _wait_settled(self, names: list[str], seconds: float) -> None:
        """Wait until Kubernetes has created the pods, and its status shows them."""

        def settled() -> bool:
            bodies = [self._deployments.objects.get(f"{name}-worker", {}) for name in names]
            return all(body.get("status", {}).get("replicas", 0) for body in bodies)

        _until(settled, seconds, "Kubernetes has created the pods", pause=0.1)

    def _wait_zero(self, queue: str, since: float, seconds: float) -> float:
        def reached() -> float | None:
            return next((after for after, count in self._changes(queue, since) if count == 0), None)

        return float(_until(reached, seconds, f"{queue} has no replica", pause=0.01))

    def do_first_ack(self, name: str) -> Object:
        """Publish two messages to an idle queue with one slot. The second arrives after the ack of the first."""
        self._wait_asleep(name, 90)
        self._pods[name].clear()
        wall = time.time() - now()
        begun, _ = self._publish(name, 2)
        written = self._wait_replicas(name, begun, 1, 60)
        _until(lambda: any(step["ready"] for step in self._pods[name]), 60, f"a pod of {name} is Ready")
        steps = list(self._pods[name])
        pod = steps[0]["pod"]
        events: dict[str, list[float]] = {}

        def handled() -> bool:
            events.clear()
            events.update(self._events(pod, wall))
            return len(events.get("handled", ())) >= 2

        _until(handled, 60, f"{pod} has handled both", pause=0.2)
        at = {
            "written": begun + written,
            "created": steps[0]["at"],
            "scheduled": next(step["at"] for step in steps if step["scheduled"]),
            "process": events["process"][0],
            "loaded": events["loaded"][0],
            "connected": events["connected"][0],
            "handled": events["handled"][0],
            "acked": events["handled"][1],
        }
        return {step: moment - begun for step, moment in at.items()}

    def _events(self, pod: str, wall: float) -> dict[str, list[float]]:
        """Return the times in the worker's log, by event. The worker's own lines use the wall clock."""
        events: dict[str, list[float]] = defaultdict(list)
        text = self._api.text(f"{PODS.format(self._namespace)}/{pod}/log?container=worker")
        for line in text.splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if "bench" in entry:
                events[entry["bench"]].append(entry["at"])
            elif entry.get("message") == "Connected to RabbitMQ.":
                stamp = datetime.fromisoformat(entry["time"]).timestamp()
                events["connected"].append(stamp - wall)
        return events

    def do_burst(self, name: str, count: int, body: str, target: int, seconds: float) -> Object:
        """Publish a backlog without waiting for confirmations. Return every count written up to the target."""
        begun = now()
        for _ in range(count):
            self._fast.basic_publish("", name, body.encode(), pika.BasicProperties(delivery_mode=2))
        sent = now() - begun
        self._wait_replicas(name, begun, target, seconds)
        return {"begun": begun, "sent": sent, "writes": self._changes(name, begun)}

    def do_writes(self, name: str, since: float) -> list[tuple[float, int]]:
        """Return every count written after `since`, with the seconds from `since`."""
        return self._changes(name, since)

    def do_wait_ready_pods(self, name: str, count: int, seconds: float) -> float:
        """Wait until `count` pods are Ready."""
        begun = now()

        def ready() -> bool:
            body = self._deployments.objects.get(f"{name}-worker", {})
            return int(body.get("status", {}).get("readyReplicas", 0)) >= count

        _until(ready, seconds, f"{count} pods of {name} are Ready")
        return now() - begun

    def do_counts(self, name: str) -> Object:
        """Return the counts of a queue."""
        answer = self._channel.queue_declare(name, passive=True).method
        return {"messages": answer.message_count, "consumers": answer.consumer_count}

    def do_purge(self, name: str) -> None:
        """Purge the queue."""
        self._channel.queue_purge(name)

    def do_metrics(self, pod: str | None = None) -> dict[str, float]:
        """Return the operator's metrics, by name with labels."""
        return _metrics(self._operator_address(pod))

    def do_wait_doorbells(self, doorbells: int, seconds: float) -> float:
        """Wait until the operator has this number of doorbells."""
        begun = now()
        address = self._operator_address(None)
        _until(lambda: _doorbells(address) >= doorbells, seconds, f"{doorbells} doorbells", 0.1)
        return now() - begun

    def do_api_requests(self, schema: str) -> float:
        """Return the API server's count of requests under a flow schema, including the start of watches."""
        wanted = f'flow_schema="{schema}"'
        lines = self._api.text("/metrics").splitlines()
        counts = (
            line for line in lines if line.startswith("apiserver_flowcontrol_dispatched_requests_total")
        )
        return sum(float(line.rsplit(" ", 1)[1]) for line in counts if wanted in line)

    def do_restart(self, doorbells: int, seconds: float) -> Object:
        """Delete the operator's pod, and wait until its successor has installed all doorbells."""
        path = PODS.format(self._system)
        (old,) = self._operators()
        begun = now()
        self._api.call("DELETE", f"{path}/{old['metadata']['name']}")

        def successor() -> Object | None:
            found = [
                pod
                for pod in self._operators()
                if pod["metadata"]["uid"] != old["metadata"]["uid"] and pod.get("status", {}).get("podIP")
            ]
            return found[0] if found else None

        new = _until(successor, seconds, "there is a new operator pod", pause=0.05)
        seen = now() - begun
        address = f"{new['status']['podIP']}:8080"
        served: list[float] = []

        def installed() -> bool:
            try:
                found = _doorbells(address)
            except OSError:
                return False
            served.append(now() - begun)
            return found >= doorbells

        _until(installed, seconds, f"there are {doorbells} doorbells", pause=0.25)
        return {
            "pod": new["metadata"]["name"],
            "seen": seen,
            "served": served[0],
            "hung": served[-1],
            "begun_at": begun,
        }

    def _operators(self) -> list[Object]:
        path = PODS.format(self._system)
        selector = "labelSelector=app.kubernetes.io/name%3Dworkqueue-operator"
        pods: list[Object] = self._api.call("GET", f"{path}?{selector}")["items"]
        return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]

    def _operator_address(self, name: str | None) -> str:
        pods = [pod for pod in self._operators() if name in {None, pod["metadata"]["name"]}]
        return f"{pods[0]['status']['podIP']}:8080"


def _metrics(address: str, query: str = "") -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics{query}", timeout=5) as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def _doorbells(address: str) -> float:
    """Return the number of doorbells. Scrape only this metric, because a full scrape costs the operator time."""
    found = _metrics(address, "?name[]=workqueue_doorbells")
    return sum(value for key, value in found.items() if key.split("{", 1)[0] == "workqueue_doorbells")


def _until(condition: Callable[[], Any], seconds: float, what: str, pause: float = POLL_SECONDS) -> Any:
    """Call `condition` until it returns neither None nor False, and return the result."""
    deadline = now() + seconds
    while (answer := condition()) is None or answer is False:
        if now() > deadline:
            raise TimeoutError(f"after {seconds:g} s this is still not true: {what}")
        time.sleep(pause)
    return answer


def _commands() -> Iterator[Object]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """Serve commands until standard input ends."""
    probe = Probe(**json.loads(sys.stdin.readline()))
    print(json.dumps({"ok": True, "answer": None}), flush=True)
    for command in _commands():
        try:
            answer = {"ok": True, "answer": getattr(probe, f"do_{command['do']}")(**command["with"])}
        except Exception as error:  # noqa: BLE001 - the error is the answer
            trace = traceback.format_exc(limit=3)
            answer = {"ok": False, "error": f"{command['do']}: {error!r}", "trace": trace}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
