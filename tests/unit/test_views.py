"""Views of the API server's pods and Deployments."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from workqueue_operator.api.reasons import Reason
from workqueue_operator.kube.views import (
    PodView,
    deployment_view,
    existing_of_refused,
    leaving,
    pod_view,
    unsettled,
)
from workqueue_operator.names import ANNOTATION_DELETION_COST, ANNOTATION_TEMPLATE_HASH, LABEL_RETIRING


def body(name: str = "jobs-worker-1", phase: str = "Running", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {ANNOTATION_TEMPLATE_HASH: "h1"},
        },
        "spec": {"nodeName": "node-1"},
        "status": {"phase": phase, "podIP": "10.0.0.7", **status},
    }


CREATED = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def container(name: str = "worker", *, ready: bool = False, last: Any = None, **state: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": "jobs:1",
        "ready": ready,
        "state": state,
        "lastState": {"terminated": last} if last else {},
    }


BACK_OFF = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}
PULL = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "jobs:1"'}


FAILURES: list[tuple[str, dict[str, Any], Reason, list[str]]] = [
    (
        "an image that cannot be pulled",
        {"containerStatuses": [container(waiting=PULL)]},
        Reason.IMAGE_PULL_FAILED,
        ["'jobs:1'", "Back-off pulling", "jobs-worker-1"],
    ),
    (
        "an image name that is none",
        {"containerStatuses": [container(waiting={"reason": "InvalidImageName"})]},
        Reason.IMAGE_PULL_FAILED,
        ["InvalidImageName"],
    ),
    (
        "a Secret of an environment variable that is missing",
        {
            "containerStatuses": [
                container(waiting={"reason": "CreateContainerConfigError", "message": 'secret "x" not found'})
            ]
        },
        Reason.WORKER_CRASHING,
        ['secret "x" not found', "worker"],
    ),
    (
        "a handler that cannot be imported, while the pod backs off",
        {
            "containerStatuses": [
                container(waiting=BACK_OFF, last={"exitCode": 3, "message": "No module named 'jobs'.\n"})
            ]
        },
        Reason.HANDLER_FAILED,
        ["No module named 'jobs'."],
    ),
    (
        "a bad configuration, just ended",
        {
            "containerStatuses": [
                container(terminated={"exitCode": 2, "message": "Give exactly one handler."})
            ]
        },
        Reason.HANDLER_FAILED,
        ["Give exactly one handler."],
    ),
    (
        "exit code 3 without a word",
        {"containerStatuses": [container(waiting=BACK_OFF, last={"exitCode": 3})]},
        Reason.HANDLER_FAILED,
        ["the worker cannot load the handler"],
    ),
    (
        "a crash with its last words",
        {
            "containerStatuses": [
                container(waiting=BACK_OFF, last={"exitCode": 1, "reason": "Error", "message": "boom"})
            ]
        },
        Reason.WORKER_CRASHING,
        ["exit code 1", "boom", "kubectl logs jobs-worker-1 --previous"],
    ),
    (
        "out of memory",
        {"containerStatuses": [container(waiting=BACK_OFF, last={"exitCode": 137, "reason": "OOMKilled"})]},
        Reason.WORKER_CRASHING,
        ["137", "OOMKilled"],
    ),
    (
        "no node for it",
        {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/3 nodes are available: 3 Insufficient memory.",
                }
            ],
        },
        Reason.POD_UNSCHEDULABLE,
        ["Insufficient memory"],
    ),
    (
        "the http handler's image cannot be pulled",
        {
            "phase": "Pending",
            "containerStatuses": [container(waiting={"reason": "PodInitializing"})],
            "initContainerStatuses": [container("handler", waiting=PULL)],
        },
        Reason.IMAGE_PULL_FAILED,
        ["'jobs:1'"],
    ),
    (
        "the http handler crashes, whatever its exit code means to a worker",
        {
            "phase": "Pending",
            "containerStatuses": [container(waiting={"reason": "PodInitializing"})],
            "initContainerStatuses": [container("handler", waiting=BACK_OFF, last={"exitCode": 3})],
        },
        Reason.WORKER_CRASHING,
        ["handler", "exit code 3"],
    ),
    (
        "a person's sidecar crashes",
        {
            "containerStatuses": [
                container("proxy", waiting=BACK_OFF, last={"exitCode": 1}),
                container(ready=True, running={}),
            ]
        },
        Reason.WORKER_CRASHING,
        ["proxy"],
    ),
    (
        "the worker's failure before the sidecar's",
        {
            "containerStatuses": [
                container("proxy", waiting=BACK_OFF, last={"exitCode": 1}),
                container(waiting=BACK_OFF, last={"exitCode": 3, "message": "no handler"}),
            ]
        },
        Reason.HANDLER_FAILED,
        ["no handler"],
    ),
]


@pytest.mark.parametrize(
    ("status", "reason", "words"), [row[1:] for row in FAILURES], ids=[r[0] for r in FAILURES]
)
def test_pod_view_names_what_prevents_readiness(
    status: dict[str, Any], reason: Reason, words: list[str]
) -> None:
    failure = pod_view(body(**status)).failure
    assert failure is not None
    assert failure.reason is reason
    for word in words:
        assert word in failure.message


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Pending"},
        {"phase": "Pending", "containerStatuses": [container(waiting={"reason": "ContainerCreating"})]},
        {"containerStatuses": [container(running={})]},
        {
            "containerStatuses": [
                container(ready=True, running={}, last={"exitCode": 1, "message": "long ago"})
            ]
        },
        {"containerStatuses": [container(terminated={"exitCode": 0, "reason": "Completed"})]},
    ],
    ids=["just made", "being created", "starting", "recovered from a crash", "drained"],
)
def test_pod_view_ignores_transient_states(status: dict[str, Any]) -> None:
    assert pod_view(body(**status)).failure is None


@pytest.mark.parametrize(
    ("phase", "ended"), [("Succeeded", True), ("Failed", True), ("Running", False), ("Pending", False)]
)
def test_pod_that_cannot_restart_has_ended(phase: str, ended: bool) -> None:
    assert pod_view(body(phase=phase, reason="Evicted")).ended is ended


def test_pod_view_has_all_fields() -> None:
    raw = body(
        conditions=[{"type": "Ready", "status": "True"}],
        containerStatuses=[container("proxy"), container(ready=True, running={"startedAt": "now"})],
    )
    raw["metadata"]["annotations"][ANNOTATION_DELETION_COST] = "-1000"
    raw["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert pod_view(raw) == PodView(
        name="jobs-worker-1",
        uid="uid-jobs-worker-1",
        ip="10.0.0.7",
        ready=True,
        running=True,
        terminating=True,
        template_hash="h1",
        marked=True,
        failure=None,
        created=CREATED,
        scheduled=True,
        started=True,
        node="node-1",
    )


def backing_off(seconds: str) -> dict[str, Any]:
    said = f"back-off {seconds} restarting failed container=worker pod=jobs-worker-1_team(uid)"
    return {"reason": "CrashLoopBackOff", "message": said}


ENDED = {"exitCode": 1, "finishedAt": "2026-01-01T00:00:10Z"}


@pytest.mark.parametrize(
    ("state", "seconds"),
    [
        ({"waiting": backing_off("40s"), "last": ENDED}, 10 + 40),
        ({"waiting": backing_off("2m40s"), "last": ENDED}, 10 + 160),
        ({"waiting": backing_off("1h0m0s"), "last": ENDED}, 10 + 3600),
        ({"waiting": {"reason": "CrashLoopBackOff"}, "last": ENDED}, None),
        ({"waiting": backing_off("40s"), "last": {"exitCode": 137, "finishedAt": None}}, None),
        ({"terminated": ENDED}, None),
    ],
    ids=["seconds", "minutes", "hours", "no duration", "unknown end", "just ended"],
)
def test_restart_of_an_ended_worker_is_known_or_may_be_any_moment(
    state: dict[str, Any], seconds: int | None
) -> None:
    restarts_at = pod_view(body(containerStatuses=[container(**state)])).restarts_at
    assert restarts_at == (0 if seconds is None else CREATED + seconds)


@pytest.mark.parametrize(
    "state",
    [
        {"running": {}, "last": ENDED},
        {"waiting": {"reason": "ContainerCreating"}},
        {"waiting": PULL, "last": ENDED},
    ],
    ids=["running again", "not started yet", "without its image"],
)
def test_worker_that_has_not_ended_does_not_restart(state: dict[str, Any]) -> None:
    assert pod_view(body(containerStatuses=[container(**state)])).restarts_at is None


def test_pod_without_status_has_an_empty_view() -> None:
    bare = {"metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}}
    assert pod_view(bare) == PodView(
        "a", "u", "", False, False, False, "", False, None, CREATED, scheduled=False, started=False
    )


# -- the Deployment


def deployment(wanted: int | None = 2, /, **status: Any) -> dict[str, Any]:
    settled = {
        "observedGeneration": 4,
        "replicas": wanted or 0,
        "updatedReplicas": wanted or 0,
        "readyReplicas": wanted or 0,
    }
    spec: dict[str, Any] = {"template": {"metadata": {"annotations": {ANNOTATION_TEMPLATE_HASH: "h1"}}}}
    if wanted is not None:
        spec["replicas"] = wanted
    return {
        "metadata": {"name": "jobs-worker", "uid": "d", "generation": 4},
        "spec": spec,
        "status": {**settled, **status},
    }


def test_rolled_out_deployment_is_settled() -> None:
    view = deployment_view(deployment())
    assert (view.replicas, view.current, view.ready, view.template_hash) == (2, 2, 2, "h1")
    assert view.rolled_out
    assert view.refusal is None


@pytest.mark.parametrize(
    "status",
    [{"observedGeneration": 3}, {"updatedReplicas": 1}],
    ids=["the controller has not seen the last spec", "old pods are left"],
)
def test_rollout_in_progress_is_recognized(status: dict[str, Any]) -> None:
    assert not deployment_view(deployment(**status)).rolled_out


def test_refused_pods_are_reported() -> None:
    refusal = deployment_view(
        deployment(conditions=[{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}])
    ).refusal
    assert refusal is not None
    assert refusal.reason is Reason.POD_REFUSED
    assert "exceeded quota" in refusal.message


def test_omitted_replicas_mean_one_and_missing_status_means_zero() -> None:
    raw = deployment(None)
    del raw["status"]
    view = deployment_view(raw)
    assert (view.replicas, view.current, view.rolled_out) == (1, 0, False)


# -- unsettled


@pytest.mark.parametrize(
    ("ready", "seconds"),
    [
        ({"status": "True", "lastTransitionTime": "2026-01-01T00:00:07Z"}, 7.0),
        ({"status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}, None),
        ({"status": "True"}, None),
    ],
    ids=["ready", "starting", "without-a-time"],
)
def test_start_time_of_a_pod_ends_when_it_is_ready(ready: dict[str, str], seconds: float | None) -> None:
    assert pod_view(body(conditions=[{"type": "Ready", **ready}])).start_seconds == seconds


def pods(count: int, **changes: Any) -> list[PodView]:
    made = []
    for number in range(count):
        raw = body(f"p{number}", conditions=[{"type": "Ready", "status": "True"}])
        raw["metadata"]["annotations"][ANNOTATION_TEMPLATE_HASH] = changes.get("template_hash", "h1")
        if changes.get("terminating"):
            raw["metadata"]["deletionTimestamp"] = "now"
        made.append(pod_view(raw))
    return made


def test_settled_deployment_may_scale_in() -> None:
    assert unsettled(deployment_view(deployment(2)), pods(2)) is None


def test_terminating_pods_do_not_block_scale_in() -> None:
    old = pods(1, terminating=True, template_hash="old")
    assert unsettled(deployment_view(deployment(2)), [*pods(2), *old]) is None


@pytest.mark.parametrize(
    ("raw", "there", "reason"),
    [
        (deployment(2, observedGeneration=3), pods(2), Reason.ROLLOUT_UNDER_WAY),
        (deployment(2), [*pods(1), *pods(1, template_hash="old")], Reason.ROLLOUT_UNDER_WAY),
        (deployment(2, replicas=3, updatedReplicas=3), pods(2), Reason.PODS_SETTLING),
        (deployment(2), pods(1), Reason.PODS_SETTLING),
        (deployment(2), pods(3), Reason.PODS_SETTLING),
    ],
    ids=[
        "the controller has not seen the last spec",
        "a pod of another template",
        "the controller is not there yet",
        "the store has seen too few pods",
        "the store has seen too many pods",
    ],
)
def test_unsettled_deployment_may_not_scale_in(
    raw: dict[str, Any], there: list[PodView], reason: Reason
) -> None:
    found = unsettled(deployment_view(raw), there)
    assert found is not None
    assert found.reason is reason


# -- pods that Kubernetes must still remove


def marked(there: list[PodView]) -> list[PodView]:
    return [replace(pod, marked=True) for pod in there]


@pytest.mark.parametrize(
    ("count", "there", "expected"),
    [
        (1, marked(pods(2)), 2),
        (2, marked(pods(2)), 0),
        (3, marked(pods(2)), 0),
        (1, [*marked(pods(1)), *pods(1, terminating=True)], 0),
        (1, [*marked(pods(1, template_hash="old")), *pods(1)], 0),
        (1, [*marked(pods(1)), *pods(1, template_hash="")], 0),
    ],
    ids=[
        "more pods than the count",
        "scale-in that was called off",
        "fewer pods, as under a quota",
        "the surplus terminates",
        "rollout",
        "pod of a person with the label of the workers",
    ],
)
def test_marked_pods_leave_only_while_there_are_too_many(
    count: int, there: list[PodView], expected: int
) -> None:
    assert len(leaving(deployment_view(deployment(count)), there)) == expected


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        ({LABEL_RETIRING: "true"}, True),
        ({LABEL_RETIRING: "false"}, False),
        ({LABEL_RETIRING: "false", "security.istio.io/tlsMode": "istio"}, False),
    ],
    ids=["marked", "not marked", "with a label of a service mesh"],
)
def test_only_the_label_of_marks_counts_as_a_mark(labels: dict[str, str], counts: bool) -> None:
    raw = body()
    raw["metadata"]["labels"] = labels
    assert pod_view(raw).relabelled == counts


# -- refused pods

QUOTA = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}


@pytest.mark.parametrize(
    ("raw", "there", "existing"),
    [
        (deployment(10, replicas=3, updatedReplicas=3, **QUOTA), pods(3), 3),
        (deployment(10, replicas=0, updatedReplicas=0, **QUOTA), [], 0),
        (deployment(10, replicas=3, updatedReplicas=3, **QUOTA), pods(4), 4),
        (deployment(10, replicas=4, updatedReplicas=4, **QUOTA), pods(3), 4),
        (deployment(10, replicas=3, updatedReplicas=3, **QUOTA), [*pods(3), *pods(1, terminating=True)], 3),
        (deployment(10, replicas=3, updatedReplicas=3), pods(3), None),
        (deployment(10, replicas=3, updatedReplicas=2, **QUOTA), pods(3), None),
        (deployment(10, replicas=3, updatedReplicas=3, observedGeneration=3, **QUOTA), pods(3), None),
        (deployment(10, replicas=3, updatedReplicas=3, **QUOTA), pods(3, template_hash="old"), None),
    ],
    ids=[
        "three-admitted",
        "none-admitted",
        "pod-that-status-lacks",
        "pod-that-store-lacks",
        "terminating-pod",
        "nothing-refused",
        "old-pods",
        "spec-not-observed",
        "pods-of-other-template",
    ],
)
def test_existing_pods_beside_refused_ones_may_scale_in(
    raw: dict[str, Any], there: list[PodView], existing: int | None
) -> None:
    assert existing_of_refused(deployment_view(raw), there) == existing
