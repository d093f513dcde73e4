"""Writes of the count that the API server refuses: what is admitted is found, reported, and tried again later."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.fakecluster import FakeCluster, Request, scale_of
from tests.support.snapshots import NO_WORKERS, snapshot
from tests.support.workqueue import workqueue
from workqueue_operator.api.reasons import Reason
from workqueue_operator.clock import SystemClock
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import DeploymentView, PodView, deployment_view, leaving
from workqueue_operator.scaling import scale
from workqueue_operator.scaling.decide import Decision, Hold, Retire, ScaleOut, Trim
from workqueue_operator.scaling.scale import RENEW_AFTER, Scaled, Scaler, ScaleState
from workqueue_operator.workers.apply import WorkloadApplier
from workqueue_operator.workers.client import Answer, SigningKeys, Workers
from workqueue_operator.workers.render import Defaults
from workqueue_operator.workers.retire import Retirer

OURS = workqueue()
THEIRS = workqueue(workloadRef={"name": "jobs-worker"})
POLICY = (
    "deployments.apps 'jobs-worker' is forbidden: ValidatingAdmissionPolicy 'few' denied request: at most 2"
)


class Api:
    """One Deployment, whose count a policy limits."""

    def __init__(self, replicas: int = 0, most: int = 2, status: int = 422) -> None:
        self.replicas, self.most, self.least, self.status = replicas, most, 0, status
        self.version = 1
        self.message = POLICY
        self.mutates = False
        self.observed = 1
        self.tried: list[int] = []
        self.cluster = FakeCluster()
        self.cluster.answer("PATCH", "/deployments/jobs-worker/scale", self.patch)
        self.cluster.answer("GET", "/deployments/jobs-worker", lambda _: self.body)
        store = Store(lambda _: None)
        workload = WorkloadApplier(self.cluster, self.cluster, Defaults(), lambda _: None, SystemClock())
        nobody: Any = None
        retirement = Retirer(self.cluster, nobody, store, SystemClock())
        self.scaler = Scaler(store, workload, retirement, SystemClock())
        self.state = ScaleState()

    @property
    def body(self) -> dict[str, Any]:
        return {
            "metadata": {
                "namespace": "team",
                "name": "jobs-worker",
                "uid": "d",
                "generation": self.version,
                "resourceVersion": str(self.version),
            },
            "spec": {"replicas": self.replicas, "template": {}},
            "status": {"observedGeneration": self.observed},
        }

    @property
    def view(self) -> DeploymentView:
        return deployment_view(self.body)

    def patch(self, request: Request) -> Any:
        test, wanted = request.body
        if test["value"] != scale_of(self.body)["spec"]:
            return ClusterError(422, "the server rejected our request due to an error in our request")
        count = wanted["value"]["replicas"]
        self.tried.append(count)
        if self.mutates:
            count = min(max(count, self.least), self.most)
            if count == self.replicas:  # a write that changes nothing makes no version
                return scale_of(self.body)
        if not self.least <= count <= self.most:
            return ClusterError(self.status, self.message)
        self.replicas, self.version = count, self.version + 1
        return scale_of(self.body)

    def noted(self, scaled: Scaled) -> Decision:
        """Keep the state as the reconciler does."""
        self.state = scaled.state
        if scaled.error is not None:
            raise scaled.error
        return scaled.decision

    def next_attempt(self) -> float | None:
        return self.state.next_attempt(time.monotonic())

    async def scale_out(self, replicas: int) -> Decision:
        decision = ScaleOut(replicas, replicas, Reason.BACKLOG, "the backlog")
        return self.noted(await self.scaler.raise_count(OURS, decision, self.view, self.state))

    async def scale_in(self, replicas: int) -> Decision:
        decision = Retire(replicas, replicas, only_when_empty=True, reason=Reason.SURPLUS, message="surplus")
        nobody: Any = None
        seen = snapshot(THEIRS, deployment=self.view)
        return self.noted(await self.scaler.scale(seen, decision, self.state, nobody))

    async def trim(self, replicas: int) -> Scaled:
        decision = Trim(replicas, replicas, Reason.POD_REFUSED, "no more pods are admitted")
        nobody: Any = None
        scaled = await self.scaler.scale(snapshot(OURS, deployment=self.view), decision, self.state, nobody)
        self.noted(scaled)
        return scaled


@pytest.mark.parametrize("status", [403, 422], ids=["403-of-a-webhook", "422-of-a-policy"])
async def test_refused_count_is_lowered_to_what_the_api_server_admits(status: int) -> None:
    api = Api(most=2, status=status)

    decision = await api.scale_out(10)

    assert api.replicas == 2
    assert isinstance(decision, Hold)
    assert (decision.wanted, decision.reason) == (10, Reason.COUNT_REFUSED)
    assert POLICY in decision.message
    assert len(api.tried) <= 5, "a bisection"


@pytest.mark.parametrize(("most", "wanted"), [(0, 1), (0, 7), (1, 2), (5, 6), (6, 100), (99, 100)])
async def test_highest_admitted_count_is_found(most: int, wanted: int) -> None:
    api = Api(most=most)

    await api.scale_out(wanted)

    assert api.replicas == most


async def test_refused_count_is_retried_only_after_its_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api(most=2)
    await api.scale_out(10)
    api.tried.clear()

    decision = await api.scale_out(10)

    assert api.tried == []
    assert decision.reason is Reason.COUNT_REFUSED
    moment = api.next_attempt()
    assert moment is not None
    monkeypatch.setattr(time, "monotonic", lambda: moment)
    api.most = 10
    decision = await api.scale_out(10)
    assert (api.replicas, decision.reason) == (10, Reason.BACKLOG)
    assert api.next_attempt() is None


async def test_pauses_between_refusals_grow_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    api, now, pauses = Api(most=0), 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(12):
        await api.scale_out(1)
        moment = api.next_attempt()
        assert moment is not None
        pauses.append(moment - now)
        now = moment

    assert pauses[0] < 2
    assert all(60 <= pause <= 75 for pause in pauses[8:])


async def test_known_limit_is_used_at_the_next_backlog_without_a_refused_write() -> None:
    api = Api(most=2)
    await api.scale_out(10)
    api.replicas = 0
    api.tried.clear()

    await api.scale_out(10)

    assert (api.replicas, api.tried) == (2, [2])


async def test_missing_right_is_reported_as_such() -> None:
    api = Api(most=0, status=403)
    api.message = 'deployments.apps "jobs-worker" is forbidden: User "operator" cannot patch resource'

    decision = await api.scale_out(100)

    assert decision.reason is Reason.API_FORBIDDEN
    assert "100 replicas" in decision.message
    assert api.tried == [100], "no other count is admitted either"


async def test_count_that_a_webhook_changes_is_reported_as_refused() -> None:
    api = Api(most=2)
    api.mutates = True

    decision = await api.scale_out(10)

    assert api.replicas == 2
    assert isinstance(decision, Hold)
    assert (decision.wanted, decision.reason) == (10, Reason.COUNT_REFUSED)
    assert "has set the count back to 2" in decision.message
    api.tried.clear()
    await api.scale_out(10)
    assert api.tried == [], "the refusal is remembered"


async def test_scale_in_that_a_webhook_undoes_backs_off() -> None:
    api = Api(replicas=3, most=9)
    api.mutates, api.least = True, 3

    for _ in range(3):
        decision = await api.scale_in(0)

    assert decision.reason is Reason.COUNT_REFUSED
    assert api.tried == [0]


async def test_count_that_a_webhook_changes_is_recorded_as_written() -> None:
    api = Api(most=2)
    api.mutates = True
    decision = ScaleOut(10, 10, Reason.BACKLOG, "the backlog")

    scaled = await api.scaler.raise_count(OURS, decision, api.view, api.state)

    assert [(write.before, write.after) for write in scaled.writes] == [(0, 2)]


async def test_failed_test_operation_is_a_conflict_and_no_refusal() -> None:
    api = Api(replicas=0)
    before = api.view
    api.replicas = 1

    decision = ScaleOut(2, 2, Reason.BACKLOG, "the backlog")
    held = api.noted(await api.scaler.raise_count(OURS, decision, before, api.state))

    assert held.reason is Reason.CONFLICTING_WRITE
    assert api.next_attempt() is None


async def test_refused_scale_in_is_reported_and_backs_off() -> None:
    api = Api(replicas=5, most=9)
    api.least = 3

    for _ in range(3):
        decision = await api.scale_in(0)

    assert decision.reason is Reason.COUNT_REFUSED
    assert (api.replicas, api.tried) == (5, [0])


async def test_count_without_refused_pods_is_lowered_as_soon_as_kubernetes_sees_it() -> None:
    api = Api(replicas=3, most=9)
    looks = 0

    def controller(_: Request) -> dict[str, Any]:
        nonlocal looks
        looks += 1
        api.observed = api.version if looks > 1 else 1
        return api.body

    api.cluster.answer("GET", "/deployments/jobs-worker", controller)

    scaled = await api.trim(2)

    assert isinstance(scaled.decision, Trim)
    assert (api.replicas, [write.after for write in scaled.writes], looks) == (2, [2], 2)


async def test_count_without_refused_pods_is_raised_again_while_kubernetes_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pod that is admitted meanwhile would take a message, and Kubernetes would then remove any of them."""
    monkeypatch.setattr(scale, "SEEN_WITHIN", 0.1)
    api = Api(replicas=3, most=9)

    scaled = await api.trim(2)

    assert (api.replicas, scaled.decision.reason) == (3, Reason.PODS_SETTLING)
    assert scaled.writes == (), "no Event tells of it"
    assert isinstance(scaled.deployment, DeploymentView)
    assert scaled.deployment.replicas == 3

    api.tried.clear()
    await api.trim(2)
    assert api.tried == [], "the next attempt follows after a pause"


@pytest.mark.parametrize("status", [0, 401, 429, 500, 503])
async def test_unreachable_api_server_is_no_refusal(status: int) -> None:
    api = Api(most=0, status=status)
    api.message = "busy"

    with pytest.raises(ClusterError):
        await api.scale_out(1)
    assert api.next_attempt() is None


async def test_write_before_an_outage_is_in_the_result() -> None:
    """The reconciler sends its Event and its metric before it raises the error."""
    api = Api(most=5)

    def second_write_fails(request: Request) -> Any:
        if api.tried[-1:] == [5]:
            return ClusterError(503, "busy")
        return api.patch(request)

    api.cluster.answer("PATCH", "/deployments/jobs-worker", second_write_fails)
    decision = ScaleOut(10, 10, Reason.BACKLOG, "the backlog")

    scaled = await api.scaler.raise_count(OURS, decision, api.view, api.state)

    assert [(write.before, write.after) for write in scaled.writes] == [(0, 5)]
    assert scaled.error is not None
    assert scaled.error.status == 503


# -- workers that wait for their removal


class AskedWorkers(Workers):
    """Workers that note who is asked to leave."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def retire(self, addresses: Any, keys: SigningKeys) -> dict[str, Answer]:
        self.asked += [address.pod for address in addresses]
        return {}


LEAVING = PodView("pod-0", "u", "10.0.0.1", True, True, False, "h", marked=True, failure=None)


@pytest.mark.parametrize(
    ("replicas", "pod", "expected"),
    [
        (0, LEAVING, ["pod-0"]),
        (0, replace(LEAVING, marked=False), []),
        (0, replace(LEAVING, running=False), []),
        (0, replace(LEAVING, terminating=True), []),
        (1, LEAVING, []),
        (0, replace(LEAVING, template_hash="old"), []),
    ],
    ids=["leaving", "unasked", "not running", "terminating", "wanted again", "rollout"],
)
async def test_leases_are_renewed_until_kubernetes_removes_the_pods(
    replicas: int, pod: PodView, expected: list[str]
) -> None:
    """A kube-controller-manager that is late would remove a worker that consumes again."""
    clock, workers, cluster = FakeClock(), AskedWorkers(), FakeCluster()
    cluster.answer("GET", "/secrets/", ClusterError(403, "forbidden"))
    store = Store(lambda _: None)
    workload = WorkloadApplier(cluster, cluster, Defaults(), lambda _: None, clock)
    scaler = Scaler(store, workload, Retirer(cluster, workers, store, clock), clock)
    view, state = replace(NO_WORKERS, replicas=replicas), ScaleState(leases_begun_at=clock.monotonic())

    for seconds in (0, RENEW_AFTER / 2, RENEW_AFTER / 2, 1):
        await clock.advance(seconds)
        state = await scaler.renew_leases(OURS, leaving(view, [pod]), state, None)

    assert workers.asked == expected
