"""What one pass knows about one WorkQueue. PURE.

`gather` returns a Snapshot; the later steps of the pass read it and never change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workqueue_operator.api.reasons import Unknown
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.kube.views import DeploymentView, PodView, existing_of_refused, unsettled
from workqueue_operator.scaling.decide import Depth, Load, Observation, WorkloadState
from workqueue_operator.scaling.depth import QueueReadings, load
from workqueue_operator.scaling.schedule import Minimum
from workqueue_operator.scaling.wait import Waits, WaitState, busy_seconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a pass knows before it decides.

    Attributes:
        deployment: the Deployment that the WorkQueue scales, or why it cannot be scaled.
        refusal: why the Deployment, or an object beside it, differs from what the WorkQueue asks for.
        readings: what the broker and the workers answered.
        depth: what the readings mean.
        minimum: the fewest replicas at this time.
        growth: by how many messages a second the backlog has grown over the last minute.
        waits: what `maxWaitSeconds` needs; None with another target.
        handler_seconds: the mean time of a handler, as last measured.
        proven_hash: the hash of the last template that had a Ready pod; None before the first.
        now: seconds on the monotonic clock when everything was gathered.
    """

    workqueue: WorkQueue
    deployment: DeploymentView | Unknown
    pods: Sequence[PodView]
    readings: QueueReadings
    depth: Depth | Unknown
    minimum: Minimum
    now: float
    refusal: Unknown | None = None
    growth: float = 0.0
    waits: WaitState | None = None
    handler_seconds: float | None = None
    proven_hash: str | None = None

    @property
    def workers_run(self) -> bool:
        """Whether a worker may be publishing to the dead-letter queue or a delay queue."""
        return bool(self.pods) or (
            isinstance(self.deployment, DeploymentView) and self.deployment.replicas > 0
        )

    @property
    def observation(self) -> Observation:
        """The part that the decision depends on."""
        return Observation(self._workload(), self.depth, self.minimum.replicas, self._load())

    def _workload(self) -> WorkloadState | Unknown:
        deployment, readings = self.deployment, self.readings
        if isinstance(deployment, Unknown):
            return deployment
        if self.workqueue.spec.worker is None:
            unknown = readings.unacknowledged if isinstance(readings.unacknowledged, Unknown) else None
            # The operator does not trim a Deployment of others: it may not know yet that an autoscaler scales it.
            return WorkloadState(deployment.replicas, unsettled=unknown)
        proven = self.proven_hash or deployment.proven_hash
        return WorkloadState(
            replicas=deployment.replicas,
            proven=proven == deployment.template_hash,
            unsettled=unsettled(deployment, self.pods),
            concurrency=readings.concurrency,
            existing=existing_of_refused(deployment, self.pods),
        )

    def _load(self) -> Load:
        if isinstance(self.deployment, Unknown) or self.workqueue.spec.worker is None:
            return Load()
        measured = load(self.readings.statuses, self.growth, self.handler_seconds)
        if self.waits is None:
            return measured
        known, slots = self.waits, self.deployment.replicas * self.readings.concurrency
        waits = Waits(
            waiting=known.line.ages,
            busy_seconds=busy_seconds(self.readings.statuses.values()),
            slots=slots,
            times=known.times,
            start_seconds=known.start_seconds,
        )
        return replace(measured, waits=waits)
