"""The page's process: configuration, endpoint, then the watch and the page, and an orderly end.

It needs neither the operator nor its leader. It only reads, unless `page.actions` lets users change something.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from workqueue import logs
from workqueue_operator.destinations import Destinations
from workqueue_operator.endpoint import Endpoint
from workqueue_operator.errors import ConfigurationError
from workqueue_operator.kube import watch
from workqueue_operator.kube.client import connect
from workqueue_operator.kube.discovery import (
    usable_namespaces,
    usable_namespaces_change,
    wait_for_resource,
)
from workqueue_operator.kube.resync import Resync
from workqueue_operator.kube.secrets import Secrets
from workqueue_operator.kube.store import Store
from workqueue_operator.workers.client import Workers
from workqueue_web.access import Access
from workqueue_web.actions import Actions
from workqueue_web.config import Config, from_environment
from workqueue_web.dead_letters import DeadLetters
from workqueue_web.decisions import Decisions
from workqueue_web.metrics import Metrics
from workqueue_web.operator_lease import OperatorLease
from workqueue_web.sampler import Sampler
from workqueue_web.server import Page, PageDependencies

logger = logging.getLogger(__name__)

KINDS: Final = ("workqueues", "pods")
"""What the page shows. It has no permission to read Deployments."""

EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2


def main() -> None:
    """The console script `workqueue-web`."""
    try:
        config = from_environment()
    except ConfigurationError as error:
        sys.stderr.write(f"The page's configuration is wrong:\n{error}\n")
        sys.exit(EXIT_CONFIGURATION)
    logs.configure(config.log_format, config.log_level)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    sys.exit(asyncio.run(PageProcess(config).run()))


class PageProcess:
    """One process of the page."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._metrics = Metrics()
        self._resync: Resync | None = None
        self._page: Page | None = None

    async def run(self) -> int:
        """Serve until a signal arrives or a fatal error occurs.

        Returns:
            The process' exit code.
        """
        endpoint = Endpoint(
            self._config.port,
            self._metrics.registry,
            self._problem,
            lambda: self._page is not None,
            self._refresh_metrics,
        )
        serving = asyncio.create_task(self._serve(lambda: _on_signals(serving.cancel)))
        _on_signals(serving.cancel)
        try:
            await endpoint.start()
            await serving
        except asyncio.CancelledError:
            return 0
        except OSError as error:
            logger.error(  # noqa: TRY400 - the sentence says it all
                "A port cannot be opened: set WORKQUEUE_PORT and WORKQUEUE_PAGE_PORT to free ones.",
                extra={"port": self._config.port, "page": self._config.page_port, "detail": str(error)},
            )
            return EXIT_FAILED
        except Exception:
            logger.exception("The page cannot continue: the process ends.")
            return EXIT_FAILED
        else:
            return 0
        finally:
            serving.cancel()
            await endpoint.stop()

    async def _serve(self, listen_to_signals: Callable[[], None]) -> None:
        """Serve until the watch fails, or until another namespace can be watched."""
        config = self._config
        async with AsyncExitStack() as parts:
            cluster = await connect(config.kubeconfig, on_request=self._metrics.api_requests.inc)
            parts.push_async_callback(cluster.close)
            await wait_for_resource(cluster)
            namespaces, left_out = await usable_namespaces(cluster, config.namespaces, KINDS)
            store = Store(lambda _: None)
            resync = Resync(cluster, store, namespaces, config.resync_seconds, KINDS)
            await resync.first()
            self._resync = resync
            workers = Workers()
            parts.push_async_callback(workers.close)
            sampler, decisions = Sampler(store, workers), Decisions(cluster)
            dead_letters = DeadLetters(
                Secrets(cluster), config.connection_secrets, Destinations(config.allowed_broker_hosts)
            )
            lease = OperatorLease(cluster, config.pod_namespace, config.lease_name)
            for part in (sampler, decisions, dead_letters, lease):
                parts.push_async_callback(part.stop)
            sampler.start()
            access = Access(cluster, audience=config.page_audience)
            actions = Actions(cluster, access, dead_letters, config.pod_name) if config.actions else None
            if actions is not None:
                parts.push_async_callback(actions.stop)
            page = Page(
                config.page_port,
                PageDependencies(
                    store, sampler, access, decisions, dead_letters, lease, actions, config.runbook_url
                ),
            )
            await page.start()
            parts.push_async_callback(page.stop)
            self._page = page
            watching = watch.run(
                store, namespaces, identity=config.pod_name, started=listen_to_signals, kinds=KINDS
            )
            running = [asyncio.create_task(watching, name="kopf"), asyncio.create_task(resync.run())]
            if left_out:
                change = usable_namespaces_change(cluster, config.namespaces, namespaces, KINDS)
                running.append(asyncio.create_task(change, name="namespaces"))
            try:
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
            for task in ended:
                task.result()

    def _problem(self) -> str | None:
        """Return a problem of this process that a restart would fix."""
        if self._resync is not None and self._resync.blind:
            return "the watch has delivered no event although a LIST shows changes"
        return None

    def _refresh_metrics(self) -> None:
        if self._page is not None:
            self._metrics.viewers.set(self._page.live)


def _on_signals(call: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, call)


if __name__ == "__main__":
    main()
