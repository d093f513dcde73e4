"""What the operator keeps of WorkQueues that were deleted: nothing, however many there were."""

from __future__ import annotations

import contextlib
import copy
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sized
from types import ModuleType
from typing import Any

import pytest

from tests.support.passes import api, applied, operator, workqueue
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube import secrets
from workqueue_operator.kube.store import Key

COUNT = 60


def body(number: int) -> dict[str, Any]:
    made = copy.deepcopy(workqueue())
    name = f"jobs-{number}"
    made["metadata"] |= {
        "namespace": f"team-{number % 7}",
        "name": name,
        "uid": f"uid-{number}",
        "resourceVersion": str(10 * number + 10),
    }
    made["spec"] |= {
        "connectionSecretRef": {"name": f"rabbitmq-{number}"},
        "limits": {"concurrency": 2, "group": f"group-{number}"},
        "recurring": [{"name": "tick", "schedule": "0 3 * * *", "body": "now"}],
    }
    if number % 3 == 0:
        del made["spec"]["worker"]
        made["spec"]["workloadRef"] = {"name": f"foreign-{number}"}
    return made


def sizes(root: object) -> Counter[str]:
    """The number of entries of each container that the operator's objects keep, by the path to it."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", root)]
    while waiting:
        path, one = waiting.pop()
        if id(one) in seen or isinstance(one, ModuleType | type | str | bytes):
            continue
        seen.add(id(one))
        if isinstance(one, Sized) and not hasattr(type(one), "__dataclass_fields__"):
            found[path] += len(one)
        for name, part in _parts(one):
            waiting.append((f"{path}.{name}" if name else f"{path}[]", part))
    return found


def _parts(one: object) -> Iterator[tuple[str, object]]:
    if isinstance(one, Mapping):
        yield from (("", part) for part in list(one.values()))
    elif isinstance(one, list | tuple | set | frozenset):
        yield from (("", part) for part in list(one))
    elif type(one).__module__.startswith("workqueue_operator"):
        names = [*getattr(one, "__dict__", ()), *getattr(type(one), "__slots__", ())]
        yield from ((name, getattr(one, name)) for name in names if hasattr(one, name))


async def test_deleted_workqueues_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seconds for which an unused Secret stays in memory: otherwise an hour.
    monkeypatch.setattr(secrets, "KEPT", 0.0)
    cluster = api("amqp://guest:guest@127.0.0.1:1/jobs")
    cluster.answer("PATCH", "/deployments/", applied)
    cluster.answer("PATCH", "/poddisruptionbudgets/", {})
    for path in ("/horizontalpodautoscalers", "/leases"):
        cluster.answer("GET", path, {"items": []})
    async with operator(cluster) as passes:
        parts, reconcile = passes.parts, passes.reconciler.reconcile

        async def live_and_die(number: int) -> None:
            made = body(number)
            key: Key = (made["metadata"]["namespace"], made["metadata"]["name"])
            parts.store.put_workqueue(made)
            await reconcile(key)
            handle = parts.brokers.known(key)
            assert handle is not None
            with contextlib.suppress(ReconcileError):
                await handle.broker.ready()
            parts.queue.ring(key)
            await reconcile(key)
            made["metadata"]["resourceVersion"] = str(10 * number + 11)
            parts.store.drop("workqueues", made)
            await reconcile(key)

        for number in range(20):
            await live_and_die(number)
        await passes.reported()
        before = sizes([passes.parts, passes.reconciler])
        for number in range(20, 20 + COUNT):
            await live_and_die(number)
        await passes.reported()
        await parts.secrets.read_due(time.monotonic())
        # As the LIST of every few minutes does.
        for kind in ("workqueues", "deployments"):
            parts.store.correct(kind, set(), None, time.monotonic() + 3600)
        after = sizes([passes.parts, passes.reconciler])

    growth = {path: after[path] - before[path] for path in after if after[path] - before[path] >= COUNT / 4}
    assert growth == {}
