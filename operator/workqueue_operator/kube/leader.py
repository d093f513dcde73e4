"""Leader election with a Lease: one operator process writes at a time.

The rules are those of client-go, with two differences. Time is measured on the monotonic clock, so that a clock that
is set does not end a Lease early. And the holder stops writing when its Lease ends on its own clock: `require` guards
each write.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from workqueue_operator.errors import ClusterError, LeadershipLostError
from workqueue_operator.kube.client import Cluster, Object, lease_path, micro_time, namespace_leases_path
from workqueue_operator.ports import Clock

logger = logging.getLogger(__name__)

LEASE_SECONDS: Final = 6
"""A standby takes over at most LEASE_SECONDS + LOOK_SECONDS after the leader was killed."""

RENEW_SECONDS: Final = 2.0
"""Seconds between two renewals. Two may fail before the Lease ends."""

LOOK_SECONDS: Final = 0.5
"""Seconds between two looks of a standby, and until the next attempt after a failed renewal. A released Lease is
taken within this time."""

REQUEST_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """The Lease as last read or written.

    Attributes:
        at: when this version was first seen, on the monotonic clock. The holder has written it earlier.
    """

    lease: Object
    at: float

    @property
    def version(self) -> str:
        return str(self.lease["metadata"]["resourceVersion"])

    @property
    def holder(self) -> str:
        return str(self.lease["spec"].get("holderIdentity") or "")

    @property
    def ends_at(self) -> float:
        """When the Lease has ended for certain. The holder's own duration counts: it may be of another release."""
        return self.at + float(self.lease["spec"].get("leaseDurationSeconds") or 0)


class Leadership:
    """Acquires, renews and releases the leadership.

    Args:
        cluster: a client without a fence.
        identity: unique among all candidates: the name of the pod.
    """

    def __init__(self, cluster: Cluster, name: str, namespace: str, identity: str, clock: Clock) -> None:
        self._cluster = cluster
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._clock = clock
        self._seen: _Seen | None = None
        self._valid_until = -math.inf
        self._renewing: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()

    @property
    def leads(self) -> bool:
        """Whether this process holds the Lease."""
        return self._clock.monotonic() < self._valid_until

    def require(self) -> None:
        """Raise LeadershipLostError unless this process holds the Lease."""
        if not self.leads:
            raise LeadershipLostError("this process no longer holds the Lease")

    async def win(self) -> None:
        """Return when this process leads. From then on it renews the Lease."""
        while not await self._succeeds(self._acquire()):
            await self._clock.sleep(self._until_next_look())
        self._renewing = asyncio.create_task(self._renew(), name="leader election")

    async def release(self) -> None:
        """Stop renewing and release the Lease, if this process holds it. Then nothing may be written."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if not self.leads:
            return
        self._valid_until = -math.inf
        if await self._succeeds(self._write("")):
            logger.info("Released the Lease.")

    # -- steps ---------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        pause = RENEW_SECONDS
        try:
            while True:
                await self._clock.sleep(pause)
                if not self.leads:
                    # After a freeze, even if nobody has taken the Lease: a write may have been refused already.
                    return
                held_until = self._valid_until
                pause = RENEW_SECONDS if await self._succeeds(self._renew_once()) else LOOK_SECONDS
                if not self.leads or self._clock.monotonic() >= held_until:
                    # The same for an answer that came after the end of the Lease that it renews.
                    return
        finally:
            self.lost.set()

    async def _renew_once(self) -> None:
        try:
            await self._write(self._identity)
        except ClusterError as error:
            if error.status not in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
                raise
            # A write without an answer may have been carried out, and a person may annotate or delete the Lease.
            await self._read()
            if self._seen is not None and self._seen.holder != self._identity:
                self._valid_until = -math.inf
                raise LeadershipLostError("another process has written the Lease") from error
            await self._write(self._identity)

    async def _acquire(self) -> None:
        """Take the Lease if it is free.

        Raises:
            LeadershipLostError: another process holds it.
            ClusterError: the API server refused or did not answer.
        """
        # From the API server's cache. An old answer only delays: a write that is based on it is refused.
        await self._read(resourceVersion="0")
        if self._seen is not None:
            self._require_free(self._seen)
        await self._write(self._identity)

    def _require_free(self, seen: _Seen) -> None:
        # A Lease with this process' own name is of the process before it in this pod, which has ended.
        if seen.holder not in {"", self._identity} and self._clock.monotonic() < seen.ends_at:
            raise LeadershipLostError(f"{seen.holder} holds the Lease")

    async def _read(self, **query: str) -> None:
        try:
            lease = await self._cluster.get(lease_path(self._namespace, self._name), **query)
        except ClusterError as error:
            if not error.not_found:
                raise
            self._seen = None
            return
        seen = _Seen(lease, self._clock.monotonic())
        if self._seen is None or seen.version != self._seen.version:
            self._seen = seen

    async def _write(self, holder: str) -> None:
        """Write the Lease as it was last seen, with this holder.

        After a write, the answer replaces the next read: the API server refuses a write that is based on an old
        version.
        """
        # Measured before the request: the Lease begins when the API server receives it.
        begun = self._clock.monotonic()
        body = self._body(holder)
        if self._seen is None:
            lease = await self._cluster.create(namespace_leases_path(self._namespace), body)
        else:
            lease = await self._cluster.replace(lease_path(self._namespace, self._name), body)
        self._seen = _Seen(lease, begun)
        if holder:
            self._valid_until = begun + LEASE_SECONDS

    def _body(self, holder: str) -> Object:
        now = micro_time(self._clock.now())
        metadata: Object = {"name": self._name, "namespace": self._namespace}
        if self._seen is None:
            spec: Object = {"acquireTime": now, "leaseTransitions": 0}
        else:
            metadata = self._seen.lease["metadata"]
            spec = dict(self._seen.lease["spec"])
            if holder and holder != self._seen.holder:
                spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        spec |= {"holderIdentity": holder, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }

    def _until_next_look(self) -> float:
        if self._seen is None or not self._seen.holder:
            return LOOK_SECONDS
        left = self._seen.ends_at - self._clock.monotonic()
        return min(left, LOOK_SECONDS) if left > 0 else LOOK_SECONDS

    async def _succeeds(self, step: Coroutine[Any, Any, None]) -> bool:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await step
        except LeadershipLostError:
            return False
        except (ClusterError, TimeoutError) as error:
            logger.warning("A request for the Lease failed.", extra={"detail": str(error) or repr(error)})
            return False
        return True
