"""What is kept about one WorkQueue between its passes: it saves work, and a restart may lose all of it.

Place in the flow: `reconcile` owns one for each WorkQueue; `observe.gather` and `act.scale` note things in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workqueue_operator.api.reasons import Finding, Unknown
from workqueue_operator.scaling.decide import ScaleInWindow


@dataclass(frozen=True, slots=True)
class Refusal:
    """A write of the count that the API server refused.

    Attributes:
        replicas: the count nearest to the present one that was refused.
        why: in the API server's words.
        until: the monotonic time before which it is not tried again.
        failures: refusals in a row.
    """

    replicas: int
    why: Unknown
    until: float
    failures: int


@dataclass(eq=False, slots=True)
class PassState:
    """Notes about one WorkQueue. Times are seconds on the monotonic clock.

    Attributes:
        uid: of the WorkQueue; another one of the same name begins with another memory.
        window: the counts that were wanted lately.
        declared: for which connection and which spec the queues were last declared.
        queue: what came of it.
        rung_at: when the bell rang, until a pass takes it up.
        waking_since: when the bell rang that the pass under way answers.
        unreachable_since: since when a worker that should be asked to leave does not answer.
        silent_since: since when a running worker does not answer, by the uid of its pod.
        proven_hash: the template hash of which a pod was seen Ready.
        last_scale: the status fields about the last change of the count.
        ready_before: when the queue was last looked at, and how many messages waited.
        growth: by how many messages a second the queue has grown lately.
        failures: passes in a row that failed at the API server, or for a reason nobody thought of.
        problems: passes in a row that had no depth.
        retry_delays: seconds of the delay queues that exist as far as is known; None before the first look.
        missing_delays: when a delay queue that a worker had named was found missing.
        workers_asked_at: when the workers were last asked for their state.
        refused_out: the last refusal to raise the count; None after a count as high was written.
        refused_in: the last refusal to lower the count; None after one was written.
    """

    uid: str
    window: ScaleInWindow
    declared: tuple[int, bytes] | None = None
    queue: Finding | None = None
    ring_at: float | None = None
    waking_since: float | None = None
    unreachable_since: float | None = None
    silent_since: dict[str, float] = field(default_factory=dict)
    proven_hash: str | None = None
    last_scale: dict[str, str] = field(default_factory=dict)
    ready_before: tuple[float, int] | None = None
    growth: float = 0.0
    failures: int = 0
    problems: int = 0
    retry_delays: set[int] | None = None
    missing_delays: dict[int, float] = field(default_factory=dict)
    workers_asked_at: float = 0.0
    refused_out: Refusal | None = None
    refused_in: Refusal | None = None
