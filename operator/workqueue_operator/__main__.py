"""The operator's process: configuration, endpoint, store and watch, leader election, passes, and an orderly end.

This is the outermost layer. It makes every part once and passes each part what it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from workqueue import logs
from workqueue_operator.broker.bindings import Bindings
from workqueue_operator.broker.limits import Limits
from workqueue_operator.broker.management import Management
from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.broker.rates import RateFeeder
from workqueue_operator.broker.warm import WarmBrokers
from workqueue_operator.clock import SystemClock
from workqueue_operator.config import Config, from_environment
from workqueue_operator.destinations import Destinations
from workqueue_operator.endpoint import Endpoint
from workqueue_operator.errors import ClusterError, ConfigurationError, LeadershipLostError
from workqueue_operator.health import Health
from workqueue_operator.kube import watch
from workqueue_operator.kube.client import (
    CONNECTIONS,
    COUNT_CONNECTIONS,
    REPORT_CONNECTIONS,
    Cluster,
    connect,
)
from workqueue_operator.kube.cordons import Cordons
from workqueue_operator.kube.discovery import usable_namespaces, usable_namespaces_change, wait_for_resource
from workqueue_operator.kube.leader import Leadership
from workqueue_operator.kube.ownership import Ownership
from workqueue_operator.kube.resync import Resync
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Store
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import RELEASE_LABELS
from workqueue_operator.reconcile.finalize import Finalizer
from workqueue_operator.reconcile.protection import Protector
from workqueue_operator.reconcile.queue import Lane, ReconcileQueue
from workqueue_operator.reconcile.reconciler import Dependencies, Reconciler
from workqueue_operator.reconcile.recurring import RecurringRunner
from workqueue_operator.reconcile.reporter import Reporter
from workqueue_operator.scaling.gather import Gatherer
from workqueue_operator.scaling.scale import Scaler
from workqueue_operator.workers import render
from workqueue_operator.workers.apply import WorkloadApplier
from workqueue_operator.workers.client import Workers
from workqueue_operator.workers.retire import Retirer
from workqueue_operator.workers.target import Targets

logger = logging.getLogger(__name__)

PATIENCE: Final = 5.0
"""Seconds that running passes get to finish when the process stops."""

PUBLISH_SECONDS: Final = 2.0
"""Seconds for the recurring messages that are being published at the end."""

FLUSH_SECONDS: Final = 2.0
"""Seconds after that for writing the last statuses and Events."""

WATCH_WITHIN: Final = 20.0
"""Seconds after the first LISTs within which the watch begins. Until then the passes work from those LISTs. kopf
handles each listed object again, which takes longer than installing its doorbell."""

STANDS_BY_AFTER: Final = 1.0
"""Seconds after which a process that has not won the Lease begins to watch."""

COLLECT_AFTER: Final = (2_000, 20, 50)
"""Thresholds of the garbage collector. A pass makes thousands of objects that reference counting frees. With Python's
own thresholds, the collector takes a fifth of the start with 1,000 WorkQueues. With 10,000 as the first one, it
delays some wakes beside 10,000 WorkQueues by up to 70 ms."""

EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_LEADERSHIP_LOST: Final = 3


def main() -> None:
    """The console script `workqueue-operator`."""
    try:
        config = from_environment()
    except ConfigurationError as error:
        sys.stderr.write(f"The operator's configuration is wrong:\n{error}\n")
        sys.exit(EXIT_CONFIGURATION)
    logs.configure(config.log_format, config.log_level)
    # kopf logs each event at INFO. pika logs each failed attempt several times; the operator logs it once, with a
    # reason.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    # Objects that exist now stay until the end. The collector skips them.
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    sys.exit(asyncio.run(Operator(config).run()))


class Operator:
    """One operator process."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._metrics = Metrics()
        self._stop = asyncio.Event()
        self._exit_code = 0
        self._leadership: Leadership | None = None
        self._health: Health | None = None
        self._brokers: BrokerPool | None = None
        self._clusters: list[Cluster] = []
        self._serving = False
        self._leading = False
        self._stands_by = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal arrives or a fatal error occurs.

        Returns:
            The process' exit code.
        """
        self._listen_to_signals()
        endpoint = Endpoint(
            self._config.port,
            self._metrics.registry,
            self._problem,
            lambda: self._serving,
            self._refresh_metrics,
        )
        try:
            await endpoint.start()
        except OSError as error:
            logger.error(  # noqa: TRY400 - the sentence says it all
                "The port cannot be opened: set WORKQUEUE_PORT to a free one.",
                extra={"port": self._config.port, "detail": str(error)},
            )
            return EXIT_FAILED
        try:
            await self._lead()
        except (ClusterError, LeadershipLostError) as error:
            logger.error("The operator cannot continue.", extra={"detail": str(error)})  # noqa: TRY400
            self._exit_code = self._exit_code or EXIT_FAILED
        finally:
            await endpoint.stop()
        return self._exit_code

    # -- the stages ----------------------------------------------------------------------------------

    async def _lead(self) -> None:
        async with AsyncExitStack() as clients:
            # Reports never delay a pass, and neither of them delays the write of a count.
            for connections in (CONNECTIONS, COUNT_CONNECTIONS, REPORT_CONNECTIONS):
                self._clusters.append(await self._connect(connections))
                clients.push_async_callback(self._clusters[-1].close)
            cluster = self._clusters[0]
            if self._config.leader_election:
                election = await connect(self._config.kubeconfig)
                clients.push_async_callback(election.close)
                self._leadership = Leadership(
                    election,
                    self._config.lease_name,
                    self._config.pod_namespace,
                    self._config.pod_name,
                    SystemClock(),
                )
                # However this process ends, its successor need not wait for the Lease to expire.
                clients.push_async_callback(self._leadership.release)
                # A standby is Ready while it waits.
                self._serving = True
            if await self._unless_ended(wait_for_resource(cluster)):
                found = asyncio.ensure_future(usable_namespaces(cluster, self._config.namespaces))
                if await self._unless_ended(found):
                    await self._serve(*found.result())

    async def _serve(self, namespaces: tuple[str, ...], left_out: dict[str, str]) -> None:
        """Prepare everything that only reads, win the Lease, and run passes until the end.

        A standby has a complete store and open broker connections. It declares, consumes and writes nothing.
        """
        config = self._config
        cluster = self._clusters[0]
        destinations = Destinations(config.allowed_broker_hosts)
        queue = ReconcileQueue(SystemClock())
        store = Store(queue.add)
        brokers = self._brokers = BrokerPool(
            partial(queue.add, lane=Lane.DEPTH),
            queue.ring,
            config.poll_seconds,
            config.idle_poll_seconds,
            destinations,
        )
        secrets = Secrets(cluster, queue.add)
        ownership = Ownership(
            cluster,
            f"{config.pod_namespace}/{config.release}",
            config.namespaces,
            lambda moved: add_namespaces(queue, store, moved),
            lambda: {namespace for namespace, _ in store.workqueues},
        )
        cordons = Cordons(cluster)
        self._metrics.namespaces_left_out.set(len(left_out))
        resync = Resync(cluster, store, namespaces, config.resync_seconds)
        self._health = Health(cluster, resync, queue, brokers)
        running: list[asyncio.Task[None]] = []
        try:
            # The store is complete before the first pass: a pass that misses a Deployment creates it.
            if not (await self._unless_ended(ownership.first()) and await self._unless_ended(resync.first())):
                return
            running.append(asyncio.create_task(resync.run(), name="resync"))
            running.append(asyncio.create_task(secrets.run(), name="secrets"))
            running.append(asyncio.create_task(ownership.run(), name="ownership"))
            if config.read_nodes:
                running.append(asyncio.create_task(cordons.run(), name="cordons"))
            if left_out:
                change = usable_namespaces_change(cluster, config.namespaces, namespaces)
                running.append(asyncio.create_task(change, name="namespaces"))
                running[-1].add_done_callback(lambda _: self._stop.set())
            watching = asyncio.create_task(self._watch(queue, store, namespaces), name="kopf")
            watching.add_done_callback(self._on_watch_end)
            running.append(watching)
            if await self._unless_ended(self._win(WarmBrokers(store, ownership, secrets, brokers))):
                await self._reconcile(queue, store, brokers, secrets, ownership, destinations, cordons)
        finally:
            await brokers.close()
            # Every writer has ended. The successor may begin while kopf, which only reads, shuts down.
            if self._leadership is not None:
                await self._leadership.release()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _watch(self, queue: ReconcileQueue, store: Store, namespaces: Sequence[str]) -> None:
        """Watch, after the first passes: kopf lists everything once more, and a doorbell must not wait for that."""
        ends = {asyncio.create_task(queue.caught_up()), asyncio.create_task(self._stands_by.wait())}
        try:
            await asyncio.wait(ends, timeout=WATCH_WITHIN, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        await watch.run(store, namespaces, identity=self._config.pod_name, started=self._listen_to_signals)

    async def _win(self, standby: WarmBrokers) -> None:
        """Wait for the Lease, and keep the broker connections open until then."""
        if self._leadership is None:
            return
        warming = asyncio.create_task(standby.run(), name="warm brokers")
        begins = asyncio.get_running_loop().call_later(STANDS_BY_AFTER, self._stands_by.set)
        try:
            await self._leadership.win()
        finally:
            begins.cancel()
            warming.cancel()
            await asyncio.gather(warming, return_exceptions=True)
        await standby.hand_over()
        logger.info("This process leads.", extra={"identity": self._config.pod_name})

    async def _reconcile(
        self,
        queue: ReconcileQueue,
        store: Store,
        brokers: BrokerPool,
        secrets: Secrets,
        ownership: Ownership,
        destinations: Destinations,
        cordons: Cordons,
    ) -> None:
        """Run passes until the process is told to stop or loses its Lease."""
        config = self._config
        cluster, counts, reports = self._clusters
        clock = SystemClock()
        workers = Workers()
        management = Management(destinations)
        reporter = Reporter(
            reports, store, config.pod_name, self._metrics, clock=clock, is_urgent=lambda: counts.busy
        )
        protector = Protector(reports, store, clock)
        recurring = RecurringRunner(
            reports, reporter, self._metrics, clock, partial(queue.add, lane=Lane.TIMER)
        )
        defaults = render.Defaults(
            config.worker_image,
            config.worker_network_policy,
            config.metrics_from,
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": config.pod_namespace}},
                "podSelector": {"matchLabels": RELEASE_LABELS},
            },
            config.worker_pull_secrets,
            config.worker_other_ports,
        )
        leadership = self._leadership
        rates = RateFeeder(
            lambda: leadership is None or leadership.leads,
            partial(queue.add, lane=Lane.TIMER),
            brokers.are_same,
        )
        workload = WorkloadApplier(cluster, counts, defaults, partial(queue.add, lane=Lane.TIMER), clock)
        targets = Targets(cluster, store, workload, clock)
        parts = Dependencies(
            queue=queue,
            clock=clock,
            store=store,
            ownership=ownership,
            secrets=secrets,
            brokers=brokers,
            gatherer=Gatherer(targets, workers, management, clock),
            targets=targets,
            scaler=Scaler(
                store, workload, Retirer(counts, workers, store, clock), clock, lambda: cordons.nodes
            ),
            reporter=reporter,
            protector=protector,
            finalizer=Finalizer(
                cluster, store, secrets, brokers, management, workers, reporter, rates, clock=clock
            ),
            bindings=Bindings(cluster, store),
            recurring=recurring,
            limits=Limits(),
            rates=rates,
            metrics=self._metrics,
            on_fatal=self._fail,
        )
        try:
            Reconciler(parts).start()
            self._metrics.leader.set(1)
            self._serving = self._leading = True
            await self._unless_ended(self._stop.wait())
        finally:
            await queue.stop(PATIENCE)
            # A process that has lost its Lease publishes nothing more.
            await recurring.stop(0.0 if self._exit_code else PUBLISH_SECONDS)
            await rates.stop()
            protector.stop()
            await reporter.flush(FLUSH_SECONDS)
            await workers.close()
            await management.close()

    # -- the end -------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    def _fail(self, error: BaseException) -> None:
        logger.error("This process must no longer write.", extra={"detail": str(error)})
        self._exit_code = EXIT_LEADERSHIP_LOST
        self._stop.set()

    def _on_watch_end(self, task: asyncio.Task[None]) -> None:
        if not self._stop.is_set():
            error = None if task.cancelled() else task.exception()
            logger.error("The watch has ended: the process ends with it.", extra={"detail": repr(error)})
            self._exit_code = EXIT_FAILED
            self._stop.set()

    async def _unless_ended(self, work: Awaitable[Any]) -> bool:
        """Whether the work ended before the process was told to stop or lost its Lease."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self._stop.wait())
        ends = {stop}
        if self._leadership is not None:
            ends.add(asyncio.create_task(self._leadership.lost.wait()))
        await asyncio.wait({task, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and not stop.done():
            self._fail(LeadershipLostError("the Lease could not be renewed"))
        for end in ends:
            end.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return False
        task.result()
        return True

    # -- health --------------------------------------------------------------------------------------

    async def _connect(self, connections: int = CONNECTIONS) -> Cluster:
        return await connect(
            self._config.kubeconfig, self._fence, connections, self._metrics.api_requests.inc
        )

    def _fence(self) -> None:
        if self._leadership is not None:
            self._leadership.require()

    def _problem(self) -> str | None:
        return self._health.problem() if self._health is not None else None

    def _refresh_metrics(self) -> None:
        if self._leadership is not None:
            self._metrics.leader.set(self._leadership.leads)
        for gauge in (self._metrics.broker_up, self._metrics.doorbells, self._metrics.depth_age_seconds):
            gauge.clear()
        for handle in self._brokers if self._leading and self._brokers is not None else ():
            name = handle.broker.binding.display
            user = handle.broker.binding.username
            self._metrics.broker_up.labels(name, user).set(handle.broker.connected)
            self._metrics.doorbells.labels(name, user).set(handle.broker.doorbells)
            age = handle.poller.age()
            if age is not None:
                self._metrics.depth_age_seconds.labels(name, user).set(age)


def add_namespaces(queue: ReconcileQueue, store: Store, namespaces: set[str]) -> None:
    """Run a pass over each WorkQueue in these namespaces: another operator serves them from now on."""
    for key in [key for key in store.workqueues if key[0] in namespaces]:
        queue.add(key, Lane.RESYNC)


if __name__ == "__main__":
    main()
