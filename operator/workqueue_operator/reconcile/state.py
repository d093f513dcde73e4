"""What the operator keeps about one WorkQueue between its passes. A restart may lose all of it.

Only the reconciler writes it, from what the steps of a pass return.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workqueue.contract.topology import Limit
from workqueue_operator.api.reasons import Finding
from workqueue_operator.reconcile.status import Outcome
from workqueue_operator.scaling.decide import ScaleInWindow
from workqueue_operator.scaling.gather import GatherState
from workqueue_operator.scaling.retries import RetryState
from workqueue_operator.scaling.scale import ScaleState


@dataclass(eq=False, slots=True)
class PassState:
    """Notes about one WorkQueue. Times are seconds on the monotonic clock.

    Attributes:
        uid: the WorkQueue's. A new WorkQueue of the same name begins with a new state.
        secret: the Secret of the connection to the broker that the passes use; None without a connection.
        window: the counts that recent passes wanted.
        queue_spec: the generation of the WorkQueue, and the digest of what the declaration depends on.
        declared: the broker, its connection, and that digest, for which the queues were last declared.
        queue: the result of that declaration.
        tokens: the broker, its connection and the limit for which the tokens were last made.
        last_scale: the status fields about the last change of the count.
        failures: passes in a row that raised an error, such as one of the API server.
        problems: passes in a row that had no depth.
        caught_up: whether a pass has set the doorbell and the count since the start of this process.
        reported: the generation and the outcome of the last pass that had something new to report.
        reported_version: the resourceVersion that it had read.
    """

    uid: str
    window: ScaleInWindow
    secret: str | None = None
    queue_spec: tuple[int, bytes] = (-1, b"")
    declared: tuple[str, int, bytes] | None = None
    queue: Finding | None = None
    tokens: tuple[str, int, Limit] | None = None
    last_scale: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    problems: int = 0
    caught_up: bool = False
    reported: tuple[int, Outcome] | None = None
    reported_version: str = ""
    gathered: GatherState = field(default_factory=GatherState)
    scaled: ScaleState = field(default_factory=ScaleState)
    retries: RetryState = field(default_factory=RetryState)
