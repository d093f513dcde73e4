"""Leader election with a Lease: one operator process writes at a time.

Additions to the election of `kubernetes.aio`: each request has a timeout below the renew deadline, so that a stuck
request cannot keep a dead leader; the validity of the Lease is measured on the monotonic clock; and a graceful stop
releases the Lease, so that the successor does not wait until it expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from typing import Final

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection import electionconfig, leaderelection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from workqueue_operator.errors import LeadershipLostError

logger = logging.getLogger(__name__)

LEASE_SECONDS: Final = 12
RENEW_DEADLINE: Final = 8
RETRY_SECONDS: Final = 3
"""A successor takes over within LEASE_SECONDS + RETRY_SECONDS after a crash, and RETRY_SECONDS after a release."""

REQUEST_SECONDS: Final = 2.5


class _Lock(LeaseLock):
    """The Lease, with a timeout on each request and the time until which this process holds it.

    After a write, the answer of the server replaces the next read. If another process has written in between, the
    server refuses the next write. This halves the requests of an idle operator.
    """

    def __init__(self, name: str, namespace: str, identity: str, api: ApiClient) -> None:
        super().__init__(name, namespace, identity, api)
        self.valid_until = 0.0
        self._as_written = False

    async def get(
        self, name: str, namespace: str
    ) -> tuple[bool, LeaderElectionRecord] | tuple[bool, Exception] | tuple[bool, None]:
        if self._as_written and self.lease_reference is not None:
            return True, self.election_record(self.lease_reference)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return await super().get(name, namespace)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return False, ApiException(status=0, reason=repr(error))

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        # Replaces the library's method, which passes `pretty=True`, which the library's client refuses (37.0.2).
        lease = client.V1Lease(
            metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record)
        )
        return await self._keep(self._create(namespace, lease))

    async def _create(self, namespace: str, lease: client.V1Lease) -> bool:
        try:
            await self.api_instance.create_namespaced_lease(namespace, lease)
        except ApiException as error:
            logger.warning("Creating the Lease failed.", extra={"detail": str(error.reason)})
            return False
        return True

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        self._as_written = False
        self._as_written = await self._keep(self._replace(name, namespace, updated_record))
        return self._as_written

    async def _replace(self, name: str, namespace: str, record: LeaderElectionRecord) -> bool:
        # Replaces the library's method, which discards the answer.
        lease = self.lease_reference
        if lease is None:
            return False
        lease.spec = self.update_lease(record, lease.spec)
        try:
            self.lease_reference = await self.api_instance.replace_namespaced_lease(name, namespace, lease)
        except ApiException as error:
            logger.warning("Renewing the Lease failed.", extra={"detail": str(error.reason)})
            return False
        return True

    async def _keep(self, write: Awaitable[bool]) -> bool:
        # Measured before the request, because the Lease starts when the server receives it.
        begun = time.monotonic()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                done = await write
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False
        if done:
            self.valid_until = begun + LEASE_SECONDS
        return bool(done)


class Leadership:
    """Acquires, renews and releases the leadership.

    Args:
        identity: unique among all candidates: the name of the pod.
    """

    def __init__(self, api: ApiClient, name: str, namespace: str, identity: str) -> None:
        self._lock = _Lock(name, namespace, identity, api)
        self._won = asyncio.Event()
        self.lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def require(self) -> None:
        """Raise LeadershipLostError unless this process holds the Lease."""
        if time.monotonic() >= self._lock.valid_until:
            raise LeadershipLostError("this process no longer holds the Lease")

    @property
    def leads(self) -> bool:
        """Whether this process holds the Lease."""
        return time.monotonic() < self._lock.valid_until

    async def win(self) -> None:
        """Return when this process leads."""

        async def started() -> None:
            self._won.set()

        async def stopped() -> None:
            self.lost.set()

        config = electionconfig.Config(
            self._lock,
            lease_duration=LEASE_SECONDS,
            renew_deadline=RENEW_DEADLINE,
            retry_period=RETRY_SECONDS,
            onstarted_leading=started,
            onstopped_leading=stopped,
        )
        self._task = asyncio.create_task(leaderelection.LeaderElection(config).run(), name="leader election")
        self._task.add_done_callback(lambda _: self.lost.set())
        won = asyncio.create_task(self._won.wait())
        await asyncio.wait({won, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not won.done():
            won.cancel()
            raise LeadershipLostError(f"the election ended: {self._task.exception()!r}")

    async def release(self) -> None:
        """Stop renewing and release the Lease, if this process holds it. Then nothing may be written."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if not self.leads:
            return
        self._lock.valid_until = 0.0
        found, record = await self._lock.get(self._lock.name, self._lock.namespace)
        if (
            not found
            or not isinstance(record, LeaderElectionRecord)
            or record.holder_identity != self._lock.identity
        ):
            return
        lease = self._lock.lease_reference
        if lease is None or lease.spec is None:
            return
        lease.spec.holder_identity = ""
        with contextlib.suppress(ApiException, TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._lock.api_instance.replace_namespaced_lease(
                    self._lock.name, self._lock.namespace, lease
                )
                logger.info("Released the Lease.")
