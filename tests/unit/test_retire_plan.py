"""Scale-in: which workers are asked, and the order of the steps, also after a failure."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from workqueue.worker.retirement import LEASE_SECONDS
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import REQUEST_TIMEOUT
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import PodView
from workqueue_operator.names import ANNOTATION_DELETION_COST, LABEL_RETIRING, LABEL_WORKQUEUE
from workqueue_operator.workers import retire
from workqueue_operator.workers.client import Address, Answer, SigningKeys, Workers, WorkerStatus
from workqueue_operator.workers.retire import (
    RetireOutcome,
    RetirePlan,
    Retirer,
    RetireSteps,
    cordoned_first,
    plan,
)

NOW = 1_800_000_000.0


def pod(name: str, **changes: Any) -> PodView:
    fields: dict[str, Any] = {
        "name": name,
        "uid": f"uid-{name}",
        "ip": "10.0.0.1",
        "ready": True,
        "running": True,
        "terminating": False,
        "template_hash": "h",
        "marked": False,
        "failure": None,
        "created": NOW - 600,
        "scheduled": True,
        "started": True,
        "replicaset": "jobs-worker-1",
    }
    return PodView(**{**fields, **changes})


def worker(busy: int = 0) -> WorkerStatus:
    return WorkerStatus(1, busy, True, None, 0.0)


def asked(made: RetirePlan) -> tuple[list[str], list[str]]:
    return [one.name for one in made.dead], [one.name for one in made.ask]


A, B, C = pod("a"), pod("b"), pod("c")
BROKEN = Unknown(Reason.IMAGE_PULL_FAILED, "no such image")
CRASHED = pod("b", running=False, ready=False, restarts_at=0.0)
STARTING = pod("b", running=False, ready=False, started=False, created=NOW - 5)
HOMELESS = pod("h", running=False, ready=False, started=False, scheduled=False)


@pytest.mark.parametrize(
    ("pods", "statuses", "surplus", "dead", "ask"),
    [
        ([A, B, C], {"a": worker(), "b": worker(), "c": worker()}, 2, [], ["a", "b"]),
        ([A, B, C], {"a": worker(1), "b": worker(), "c": worker(1)}, 2, [], ["b"]),
        ([A, B, C], {"a": worker(1), "b": worker(1), "c": worker(1)}, 2, [], []),
        ([A, B, C], {"b": worker()}, 2, [], ["b", "a"]),
        ([A, pod("b", running=False, ready=False), C], {"a": worker(), "c": worker()}, 1, ["b"], []),
        ([A, pod("b", running=False, ready=False), C], {"a": worker(), "c": worker()}, 2, ["b"], ["a"]),
        ([A, pod("b", ready=False), C], {"a": worker(), "c": worker()}, 1, [], ["b"]),
        (
            [A, pod("b", terminating=True), C],
            {"a": worker(), "b": worker(), "c": worker()},
            2,
            [],
            ["a", "c"],
        ),
        ([pod(name, running=False) for name in "abc"], {}, 2, ["a", "b"], []),
        ([pod("a", running=False), HOMELESS, C], {"c": worker()}, 1, ["h"], []),
        ([A, STARTING, C], {"a": worker(), "c": worker()}, 2, [], ["a", "c"]),
        ([A, replace(STARTING, scheduled=False), C], {"a": worker(), "c": worker()}, 1, [], ["a"]),
        ([A, replace(STARTING, failure=BROKEN), C], {"a": worker(), "c": worker()}, 1, ["b"], []),
        ([A, replace(STARTING, created=NOW - 90), C], {"a": worker(), "c": worker()}, 1, ["b"], []),
        ([A, CRASHED, C], {"a": worker(), "c": worker()}, 1, [], ["a"]),
        ([A, replace(CRASHED, restarts_at=NOW + 29), C], {"a": worker(), "c": worker()}, 1, [], ["a"]),
        ([A, replace(CRASHED, restarts_at=NOW + 31), C], {"a": worker(), "c": worker()}, 1, ["b"], []),
    ],
    ids=[
        "idle pods up to the surplus",
        "busy pods beside an idle one",
        "only busy pods",
        "pod without an answer after an idle one",
        "pod without a running worker",
        "pod without a running worker before an idle one",
        "pod that is not Ready before a Ready one",
        "terminating pod",
        "more dead pods than the surplus",
        "unscheduled pod before a crashed one",
        "starting pod",
        "starting pod without a node",
        "starting pod with a failure",
        "pod that has been starting for long",
        "crashed worker that may run again",
        "crashed worker that restarts soon",
        "crashed worker that restarts late",
    ],
)
def test_retirement_candidates_are_idle_and_ordered(
    pods: list[PodView], statuses: dict[str, WorkerStatus], surplus: int, dead: list[str], ask: list[str]
) -> None:
    assert asked(plan(pods, statuses, surplus, NOW)) == (dead, ask)


def test_idle_workers_on_cordoned_nodes_retire_first() -> None:
    """Not before a pod of a lower rank, which Kubernetes removes first, and no busy one."""
    pods = [
        pod("a", node="sound"),
        pod("b", node="cordoned"),
        pod("c", node="cordoned"),
        pod("d", node="sound", ready=False),
    ]
    statuses = {"a": worker(), "b": worker(1), "c": worker(), "d": worker()}
    assert asked(plan(cordoned_first(pods, {"cordoned"}), statuses, 2, NOW)) == ([], ["d", "c"])
    assert asked(plan(cordoned_first(pods, set()), statuses, 2, NOW)) == ([], ["d", "a"])


# -- carrying it out


KEYS = SigningKeys(b"key", b"password")


class FakeWorkers(Workers):
    """Workers with given answers."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.resumed: list[str] = []

    async def retire(self, addresses: Any, keys: SigningKeys) -> dict[str, Answer]:
        assert keys == KEYS
        return {address.pod: self.answers[address.pod] for address in addresses}

    async def resume(self, addresses: Any, keys: SigningKeys) -> None:
        asked_: list[Address] = list(addresses)
        self.resumed += [address.pod for address in asked_]


class Scene:
    """A scale-in, its API server and its workers."""

    def __init__(self, **answers: Answer) -> None:
        self.cluster = FakeCluster()
        self.workers = FakeWorkers(**answers)
        self.store = Store(lambda _: None)
        self.version = 0
        self.lowered: list[int] = []
        self.happened: list[str] = []
        self.lower_answer: Any = {"spec": {"replicas": 1}}
        self.empty: bool | None = True
        self.counted = 0
        self.about_to_come = 0
        self.carried_out = 2
        self.changed_by_others = 0
        self.marks_seen_after = 1
        self.after_marks: list[PodView] | None = None
        """The pods in the store after the marks; None: as before."""
        self.looks: list[int] = []
        """The number of marked pods at each read of the ReplicaSet."""
        self.cluster.answer("PATCH", "/pods/", self.mark)
        self.cluster.answer("GET", "/replicasets/jobs-worker-1", self.replicaset)

    def replicaset(self, _: Request) -> dict[str, Any]:
        """The ReplicaSet shows marks only after `marks_seen_after` further reads."""
        self.looks.append(len(self.marks))
        seen = self.looks[-self.marks_seen_after - 1 :][0]
        labelled = self.counted - self.changed_by_others - seen
        return {
            "metadata": {"generation": 2},
            "spec": {"replicas": self.counted + self.about_to_come},
            "status": {
                "observedGeneration": self.carried_out,
                "replicas": self.counted,
                "fullyLabeledReplicas": labelled,
            },
        }

    def mark(self, request: Request) -> dict[str, Any]:
        cost = request.body["metadata"]["annotations"][ANNOTATION_DELETION_COST]
        assert request.body["metadata"]["labels"] == {LABEL_RETIRING: "true" if cost else "false"}
        name = request.path.rpartition("/")[2]
        self.happened.append(f"{'mark' if cost else 'clear'} {name}")
        self.version += 1
        annotations = {ANNOTATION_DELETION_COST: cost} if cost else {}
        return {
            "metadata": {
                "namespace": "team",
                "name": name,
                "uid": name,
                "resourceVersion": str(self.version),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {LABEL_WORKQUEUE: "jobs", **request.body["metadata"]["labels"]},
                "annotations": annotations,
            }
        }

    async def lower(self, number: int) -> Any:
        self.happened.append(f"lower {number}")
        self.lowered.append(number)
        if isinstance(self.lower_answer, Exception):
            raise self.lower_answer
        return self.lower_answer

    async def confirm_empty(self) -> bool | None:
        self.happened.append("look")
        return self.empty

    async def carry_out(
        self,
        chosen: RetirePlan,
        pods: list[PodView],
        *,
        guarded: bool = True,
    ) -> RetireOutcome:
        self.counted = self.counted or sum(not pod.terminating for pod in pods)
        retirement = Retirer(self.cluster, self.workers, self.store, SystemClock())
        confirm_empty = self.confirm_empty if guarded else None

        def now() -> list[PodView]:
            return self.after_marks if self.marks and self.after_marks is not None else pods

        steps = RetireSteps(now, self.lower, confirm_empty)
        return await retirement.retire("team", chosen, KEYS, steps)

    async def clear_left_over(self, pods: list[PodView], **replicaset: int) -> None:
        vars(self).update(replicaset)
        await Retirer(self.cluster, self.workers, self.store, SystemClock()).clear_left_over(
            "team", pods, KEYS
        )

    @property
    def marks(self) -> list[str]:
        """The marked pods in the store."""
        return sorted(name for (_, name), pod in self.store.pods.items() if pod.marked)


RETIRED, BUSY = Answer.RETIRED, Answer.BUSY
UNSEEN = retire.UNSEEN


def says(outcome: RetireOutcome, reason: Reason, begin: str = "") -> bool:
    """Whether this obstacle ended the scale-in."""
    obstacle = outcome.obstacle
    return obstacle is not None and obstacle.reason is reason and obstacle.message.startswith(begin)


async def test_only_consenting_pods_are_marked_and_count_drops_by_their_number() -> None:
    scene = Scene(a=RETIRED, b=BUSY)
    outcome = await scene.carry_out(RetirePlan((), (A, B)), [A, B, C])
    assert scene.happened == ["mark a", "lower 1"]
    assert (outcome.removed, outcome.deployment) == (1, scene.lower_answer)
    assert outcome.answers == {"a": RETIRED, "b": BUSY}
    assert scene.workers.resumed == []


async def test_refusal_of_all_workers_changes_nothing() -> None:
    scene = Scene(a=BUSY, b=Answer.UNREACHABLE, c=Answer.REFUSED)
    outcome = await scene.carry_out(RetirePlan((), (A, B, C)), [A, B, C])
    assert scene.happened == []
    assert (outcome.removed, outcome.deployment) == (0, None)
    assert outcome.unreachable == ["b", "c"]


@pytest.mark.parametrize(
    "stays",
    [STARTING, replace(STARTING, scheduled=False), CRASHED],
    ids=["starting", "starting, its node not seen", "crashed"],
)
async def test_pod_whose_worker_may_run_unreported_stays(stays: PodView) -> None:
    """A worker takes messages before the kubelet reports that it runs."""
    scene = Scene()
    outcome = await scene.carry_out(plan([stays], {}, 1, NOW), [stays])
    assert scene.happened == []
    assert says(outcome, Reason.POD_NOT_READY, "The worker of pod b starts or has crashed")


async def test_pod_without_running_worker_is_removed_unasked() -> None:
    dead = pod("d", running=False, ready=False)
    scene = Scene()
    outcome = await scene.carry_out(RetirePlan((dead,), ()), [A, dead])
    assert scene.happened == ["mark d", "lower 1"]
    assert outcome.removed == 1


@pytest.mark.parametrize(
    "stays",
    [
        pod("u", ready=False),
        pod("u", ready=False, running=False, started=False),
        pod("u", ready=False, running=False, started=False, scheduled=False),
    ],
    ids=["not Ready", "not started", "without a node"],
)
async def test_no_pod_is_removed_while_kubernetes_prefers_a_staying_one(stays: PodView) -> None:
    """Kubernetes would do so regardless of the marks."""
    scene = Scene(a=RETIRED)
    outcome = await scene.carry_out(RetirePlan((), (A,)), [A, B, stays])
    assert scene.happened == []
    assert scene.workers.resumed == ["a"]
    assert outcome.removed == 0
    assert says(outcome, Reason.POD_NOT_READY, "Pod u ")


async def test_no_pod_is_removed_while_a_retired_pod_may_become_ready_first() -> None:
    """Two pods start. The retired one became Ready first, and Kubernetes removed a busy one instead."""
    leaves, stays = pod("a", ready=False), pod("b", ready=False)
    scene = Scene(a=RETIRED)
    outcome = await scene.carry_out(RetirePlan((), (leaves,)), [leaves, stays, C])
    assert (scene.lowered, scene.workers.resumed) == ([], ["a"])
    assert says(outcome, Reason.POD_NOT_READY, "Pod b ")


async def test_count_is_lowered_only_after_kubernetes_saw_the_marks() -> None:
    """Before that, its controller removed workers that had not been asked."""
    scene = Scene(a=RETIRED, b=RETIRED)
    scene.marks_seen_after = 3
    outcome = await scene.carry_out(RetirePlan((), (A, B)), [A, B, C])
    assert scene.looks == [0, 2, 2, 2, 2]
    assert (scene.happened[-1], outcome.removed) == ("lower 2", 2)


async def test_unseen_marks_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ReplicaSet that counts them late would prove the next marks with them."""
    monkeypatch.setattr(retire, "SEEN_WITHIN", 0.1)
    scene = Scene(a=RETIRED)
    scene.marks_seen_after = 1000
    outcome = await scene.carry_out(RetirePlan((), (A,)), [A, B])
    assert (scene.happened, scene.workers.resumed, outcome.obstacle) == (["mark a"], ["a"], UNSEEN)


@pytest.mark.parametrize("counted", [1, 3], ids=["fewer", "more"])
async def test_no_pod_is_marked_while_kubernetes_counts_other_pods(counted: int) -> None:
    scene = Scene(a=RETIRED)
    scene.counted = counted
    outcome = await scene.carry_out(RetirePlan((), (A,)), [A, B])
    assert (scene.happened, scene.workers.resumed, outcome.obstacle) == ([], ["a"], UNSEEN)


@pytest.mark.parametrize(("counts", "relabelled"), [(1, False), (0, True)], ids=["cleared mark", "new label"])
async def test_no_pod_is_marked_before_kubernetes_saw_the_present_labels(
    counts: int, relabelled: bool
) -> None:
    """It would count an earlier mark, seen late, as the new one, and then choose without the new one."""
    scene = Scene(a=RETIRED)
    scene.changed_by_others = counts
    outcome = await scene.carry_out(RetirePlan((), (A,)), [A, B, replace(C, relabelled=relabelled)])
    assert (scene.happened, scene.workers.resumed, outcome.obstacle) == ([], ["a"], UNSEEN)


async def test_workers_resume_when_kubernetes_is_unreachable() -> None:
    scene = Scene(a=RETIRED)
    scene.cluster.answer("GET", "/replicasets/", ClusterError(503, "busy"))
    with pytest.raises(ClusterError, match="busy"):
        await scene.carry_out(RetirePlan((), (A,)), [A, B])
    assert (scene.happened, scene.workers.resumed) == ([], ["a"])


async def test_no_pod_is_marked_while_two_replicasets_have_pods() -> None:
    scene = Scene(a=RETIRED)
    outcome = await scene.carry_out(RetirePlan((), (A,)), [A, replace(B, replicaset="jobs-worker-2")])
    assert (scene.happened, outcome.obstacle) == ([], UNSEEN)


async def test_marks_of_interrupted_scale_in_are_cleared() -> None:
    scene = Scene()
    left, going = replace(B, marked=True, relabelled=True), pod("t", marked=True, terminating=True)
    await scene.clear_left_over([A, left, going], counted=2, changed_by_others=1)
    assert (scene.happened, scene.workers.resumed) == (["clear b"], ["b"])


@pytest.mark.parametrize(
    "replicaset",
    [{"carried_out": 1}, {"about_to_come": -1}, {"counted": 3}, {"changed_by_others": 0}],
    ids=["count not seen", "count seen", "removal under way", "mark not seen"],
)
async def test_marks_stay_while_kubernetes_may_act_on_a_count(replicaset: dict[str, int]) -> None:
    """A count was lowered and raised again; Kubernetes removed workers whose marks were cleared meanwhile."""
    scene = Scene()
    pods = [A, replace(B, marked=True, relabelled=True)]
    await scene.clear_left_over(pods, **{"counted": 2, "changed_by_others": 1, **replicaset})
    assert (scene.happened, scene.workers.resumed) == ([], [])


async def test_relabelled_pod_does_not_count_as_consenting() -> None:
    scene = Scene(a=RETIRED)
    scene.changed_by_others = 1
    scene.marks_seen_after = 2
    outcome = await scene.carry_out(RetirePlan((), (A,)), [A, B, replace(C, relabelled=True)])
    assert scene.looks == [0, 1, 1, 1]
    assert outcome.removed == 1


async def test_new_pod_during_requests_stops_scale_in_to_zero() -> None:
    """After a drain, the successor of a pod is not in the plan and would be removed unasked."""
    scene = Scene(a=RETIRED, b=RETIRED)
    drained, successor = replace(A, terminating=True), replace(STARTING, name="s", uid="s")
    outcome = await scene.carry_out(RetirePlan((), (A, B)), [drained, successor, B])
    assert (scene.lowered, scene.marks) == ([], [])
    assert says(outcome, Reason.POD_NOT_READY, "Pod s ")


async def test_step_to_zero_does_not_wait_until_kubernetes_saw_the_marks() -> None:
    """Kubernetes removes all pods, so the marks decide nothing."""
    scene = Scene(a=RETIRED, b=RETIRED)
    scene.marks_seen_after = 1000
    outcome = await scene.carry_out(RetirePlan((), (A, B)), [A, B])
    assert scene.looks == [0]
    assert (scene.happened[-1], outcome.removed) == ("lower 2", 2)


async def test_new_pod_after_the_marks_stops_scale_in_to_zero() -> None:
    """A pod that was deleted after its mark gets a successor, which would be removed unasked."""
    scene = Scene(a=RETIRED, b=RETIRED)
    scene.after_marks = [replace(A, terminating=True), B, replace(STARTING, name="s", uid="s")]
    outcome = await scene.carry_out(RetirePlan((), (A, B)), [A, B])
    assert (scene.lowered, outcome.obstacle) == ([], UNSEEN)
    assert sorted(scene.workers.resumed) == ["a", "b"]


async def test_marks_decide_among_pods_of_one_rank() -> None:
    """Three pods without a node become one."""
    homeless = [replace(HOMELESS, name=name, uid=name) for name in "abc"]
    scene = Scene()
    outcome = await scene.carry_out(RetirePlan(tuple(homeless[:2]), ()), homeless)
    assert sorted(scene.happened[:2]) == ["mark a", "mark b"]
    assert (scene.happened[2:], outcome.removed, outcome.obstacle) == (["lower 2"], 2, None)


async def test_unschedulable_pod_is_removed_while_another_starts() -> None:
    scene = Scene()
    outcome = await scene.carry_out(RetirePlan((HOMELESS,), ()), [HOMELESS, STARTING, C])
    assert outcome.removed == 1


async def test_scale_in_to_zero_confirms_empty_before_marking() -> None:
    scene = Scene(a=RETIRED, b=RETIRED)
    await scene.carry_out(RetirePlan((), (A, B)), [A, B, pod("gone", terminating=True)])
    assert scene.happened[0] == "look"
    assert scene.happened[-1] == "lower 2"


async def test_partial_scale_in_needs_no_empty_check() -> None:
    scene = Scene(a=RETIRED)
    await scene.carry_out(RetirePlan((), (A,)), [A, B])
    assert "look" not in scene.happened


async def test_pinned_zero_needs_no_empty_check() -> None:
    scene = Scene(a=RETIRED)
    await scene.carry_out(RetirePlan((), (A,)), [A], guarded=False)
    assert scene.happened == ["mark a", "lower 1"]


@pytest.mark.parametrize(
    ("empty", "reason"),
    [(False, Reason.MESSAGES_WAITING), (None, Reason.DOORBELL_UNAVAILABLE)],
    ids=["new message", "no doorbell"],
)
async def test_scale_in_to_zero_requires_a_confirmed_empty_queue(empty: bool | None, reason: Reason) -> None:
    scene = Scene(a=RETIRED, b=RETIRED)
    scene.empty = empty
    outcome = await scene.carry_out(RetirePlan((), (A, B)), [A, B])
    assert scene.happened == ["look"]
    assert sorted(scene.workers.resumed) == ["a", "b"]
    assert outcome.removed == 0
    assert says(outcome, reason)


async def test_marks_and_leases_stay_after_foreign_count_change() -> None:
    """The count may be lower, and without marks Kubernetes would choose the pods."""
    scene = Scene(a=RETIRED, b=RETIRED)
    scene.lower_answer = None
    outcome = await scene.carry_out(RetirePlan((), (A, B)), [A, B, C])
    assert (outcome.obstacle, scene.marks, scene.workers.resumed) == (retire.CONFLICT, ["a", "b"], [])


async def test_refused_patch_resumes_workers() -> None:
    scene = Scene(a=RETIRED)
    scene.lower_answer = ClusterError(403, "forbidden")
    with pytest.raises(ClusterError):
        await scene.carry_out(RetirePlan((), (A,)), [A, B])
    assert (scene.happened, scene.workers.resumed) == (["mark a", "lower 1"], ["a"])


@pytest.mark.parametrize("status", [0, 500, 504], ids=["no answer", "server error", "gateway timeout"])
async def test_marks_and_leases_stay_when_patch_may_have_been_applied(status: int) -> None:
    """The count may be lower, and without marks Kubernetes would choose the pods."""
    scene = Scene(a=RETIRED)
    scene.lower_answer = ClusterError(status, "no answer")
    with pytest.raises(ClusterError):
        await scene.carry_out(RetirePlan((), (A,)), [A, B])
    assert (scene.marks, scene.workers.resumed) == (["a"], [])


async def test_failed_mark_resumes_all_workers_after_the_others_ended() -> None:
    scene = Scene(a=RETIRED, b=RETIRED, c=RETIRED)
    late = asyncio.Event()

    async def late_mark(request: Request) -> dict[str, Any]:
        await late.wait()
        return scene.mark(request)

    def failing(_: Request) -> Any:
        late.set()
        return ClusterError(503, "busy")

    scene.cluster.answer("PATCH", "/pods/a", late_mark)
    scene.cluster.answer("PATCH", "/pods/b", failing)
    with pytest.raises(ClusterError):
        await scene.carry_out(RetirePlan((), (A, B, C)), [A, B, C, pod("d")])
    assert (scene.lowered, scene.marks) == ([], ["a", "c"])
    assert sorted(scene.workers.resumed) == ["a", "b", "c"]


async def test_vanished_pod_cancels_the_scale_in() -> None:
    """It gets a successor, so the count would be one too low."""
    scene = Scene(a=RETIRED, b=RETIRED)
    scene.cluster.answer("PATCH", "/pods/b", ClusterError(404, "not found"))
    outcome = await scene.carry_out(RetirePlan((), (A, B)), [A, B, C])
    assert (outcome.removed, scene.lowered) == (0, [])
    assert sorted(scene.workers.resumed) == ["a", "b"]


@pytest.mark.parametrize(
    "stays", [replace(B, ready=False), replace(STARTING, name="s", uid="s")], ids=["not Ready", "successor"]
)
async def test_pod_that_kubernetes_prefers_after_the_marks_stops_scale_in(stays: PodView) -> None:
    """An eviction in the seconds until Kubernetes has seen the marks."""
    scene = Scene(a=RETIRED)
    scene.after_marks = [A, stays]
    outcome = await scene.carry_out(RetirePlan((), (A,)), [A, B])
    assert (scene.lowered, scene.workers.resumed) == ([], ["a"])
    assert says(outcome, Reason.POD_NOT_READY, f"Pod {stays.name} ")


async def test_pod_whose_worker_runs_when_it_is_marked_stays() -> None:
    dead = pod("d", running=False, ready=False)
    scene = Scene()
    scene.after_marks = [A, replace(dead, running=True)]
    outcome = await scene.carry_out(RetirePlan((dead,), ()), [A, dead])
    assert scene.happened == ["mark d"]
    assert says(outcome, Reason.POD_NOT_READY, "The worker of pod d has just started")


async def test_terminating_pod_cancels_the_scale_in() -> None:
    """It is marked, but its successor would be removed unasked."""
    scene = Scene(a=RETIRED, b=RETIRED)

    def going(request: Request) -> dict[str, Any]:
        live = scene.mark(request)
        live["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        return live

    scene.cluster.answer("PATCH", "/pods/b", going)
    outcome = await scene.carry_out(RetirePlan((), (A, B)), [A, B, C])
    assert (outcome.obstacle, scene.lowered) == (UNSEEN, [])


async def test_mark_that_cannot_be_cleared_is_left_to_the_next_pass() -> None:
    scene = Scene()
    scene.cluster.answer("PATCH", "/pods/b", ClusterError(503, "busy"))
    pods = [A, replace(B, marked=True, relabelled=True)]
    await scene.clear_left_over(pods, counted=2, changed_by_others=1)
    assert scene.workers.resumed == ["b"]


async def test_expired_consent_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retired worker consumes again after 30 s, and would be killed while it handles a message."""
    scene = Scene(a=RETIRED)
    late = 0.0
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + late)

    def slow_mark(request: Request) -> dict[str, Any]:
        nonlocal late
        late += retire.LOWER_WITHIN
        return scene.mark(request)

    scene.cluster.answer("PATCH", "/pods/a", slow_mark)
    outcome = await scene.carry_out(RetirePlan((), (A,)), [A, B])

    assert says(outcome, Reason.RETIREMENT_TOO_SLOW)
    assert (scene.lowered, scene.workers.resumed) == ([], ["a"])


def test_slowest_scale_in_ends_before_the_lease_does() -> None:
    assert retire.LOWER_WITHIN + REQUEST_TIMEOUT < LEASE_SECONDS
    assert retire.LOWER_WITHIN + REQUEST_TIMEOUT < retire.ENDED_FOR
