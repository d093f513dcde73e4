"""The four ways out of the process that a pass has: time, the API server, the broker and the workers.

`clock`, `kube`, `broker` and `workers` implement them. The steps of a pass use nothing else of the outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from workqueue.contract.binding import Binding
    from workqueue.contract.topology import BrokerVersion, Plan
    from workqueue_operator.broker.connection import QueueCounts
    from workqueue_operator.broker.depth_poller import PollAnswer, PolledQueue
    from workqueue_operator.kube.store import Key
    from workqueue_operator.workers.client import Address, Answer, SigningKeys, WorkerStatus


class Timer(Protocol):
    """A function that the clock calls later."""

    def cancel(self) -> None:
        """Do not call the function."""
        ...


class Clock(Protocol):
    """Time."""

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        ...

    def now(self) -> datetime:
        """Return the time of day, in UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call a function after some seconds."""
        ...


class Kubernetes(Protocol):
    """The API server. Every method raises ClusterError when it refuses or does not answer."""

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """Read an object or a list."""
        ...

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...

    async def apply(
        self, path: str, body: dict[str, Any], manager: str = ..., *, force: bool = True
    ) -> dict[str, Any]:
        """Apply fields server-side. Without `force`, a field of another manager is a conflict."""
        ...

    async def merge(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Write some fields of an object with a merge patch."""
        ...

    async def json_patch(self, path: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
        """Write some fields of an object with a JSON Patch."""
        ...


class Workers(Protocol):
    """The endpoints of the workers. A worker that does not answer is no error."""

    async def statuses(self, addresses: Sequence[Address]) -> dict[str, WorkerStatus]:
        """Return the answers by pod name, without the workers that did not answer."""
        ...

    async def stopping(self, addresses: Sequence[Address]) -> dict[str, WorkerStatus]:
        """The same for workers that were told to stop. A closed port means that the worker has ended."""
        ...

    def pause(self, addresses: Sequence[Address]) -> float:
        """Return the seconds until a pass should ask, when none of these workers has answered. 0: it may ask now."""
        ...

    async def retire(self, addresses: Iterable[Address], keys: SigningKeys) -> dict[str, Answer]:
        """Ask workers to take no more messages for the duration of a lease."""
        ...

    async def resume(self, addresses: Iterable[Address], keys: SigningKeys) -> None:
        """Let retired workers take messages again."""
        ...


class Broker(Protocol):
    """The broker of a WorkQueue: a connection that WorkQueues may share, and the poller of its queues."""

    @property
    def broker(self) -> BrokerConnection:
        """The connection."""
        ...

    @property
    def poller(self) -> Poller:
        """The poller."""
        ...


class BrokerConnection(Protocol):
    """One connection: its doorbells and its declarations."""

    @property
    def binding(self) -> Binding:
        """Where the connection leads to, and as whom."""
        ...

    @property
    def version(self) -> BrokerVersion:
        """RabbitMQ's version."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether calls of passes wait for others although RabbitMQ answers."""
        ...

    def doorbell_installed_at(self, queue: str) -> float | None:
        """Return the monotonic time of the confirmation; None without a doorbell."""
        ...

    def has_doorbell(self, queue: str) -> bool:
        """Whether the doorbell counts among the queue's consumers."""
        ...

    async def install_doorbell(self, queue: str, *, ours: bool = True) -> bool:
        """Install the doorbell. Returns whether the broker confirmed it."""
        ...

    def remove_doorbell(self, queue: str) -> None:
        """Cancel the doorbell, if there is one."""
        ...

    async def declare(self, plan: Plan) -> Mapping[str, QueueCounts]:
        """Declare queues and exchanges. Raises ReconcileError when the broker refuses or does not answer."""
        ...

    def doorbell_is_silent(self, queue: str) -> bool:
        """Whether the broker does not answer the doorbell's consumer."""
        ...


class Poller(Protocol):
    """Reads the counts of queues by passive declare."""

    def watch(self, key: Key, queue: str) -> PolledQueue:
        """Poll a queue from now on."""
        ...

    async def ask(self, polled: PolledQueue) -> PollAnswer:
        """Read the counts now."""
        ...

    async def last_answer(self, key: Key, queue: str, *, warm: bool) -> PollAnswer | None:
        """Return the last answer about a queue beside the work queue."""
        ...

    def forget_queue(self, key: Key, queue: str) -> None:
        """Poll this queue no longer."""
        ...
