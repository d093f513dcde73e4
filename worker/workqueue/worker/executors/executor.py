"""The common form of the executors, and the calls with which they report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from workqueue.worker.slot import Delivery


class Executor(Protocol):
    """Runs handlers, and the I/O loop of the consuming connection."""

    def start(self) -> None:
        """Start the threads, and with them the I/O loop."""

    def accepts(self, slot: int) -> bool:
        """Whether a handler can start in this slot. Called under the lock of the I/O loop."""

    def submit(self, delivery: Delivery) -> None:
        """Run the handler. Called under the lock of the I/O loop."""

    def cancel(self, delivery: Delivery) -> None:
        """Ask a handler to stop: its result no longer counts. Called under the lock of the I/O loop."""

    def is_blocked(self, delivery: Delivery) -> bool:
        """Whether another handler blocks this one. Called under the lock of the I/O loop."""

    def stop(self, timeout: float) -> bool:
        """End the threads; return False if a handler still runs after `timeout` seconds."""


class Owner(Protocol):
    """What an executor of processes reports to, under the lock of the I/O loop."""

    @property
    def draining(self) -> bool:
        """Whether the worker shuts down, so that an ended process needs no successor."""

    def handled(self, delivery: Delivery, error: BaseException | None) -> None:
        """A handler has returned, or its process has ended."""

    def interrupted(self, delivery: Delivery) -> None:
        """A handler's process was ended because of another message. The handler starts again: this is no attempt."""

    def slots_ready(self, slots: Sequence[int]) -> None:
        """Handlers can start in these slots."""

    def slots_lost(self, slots: Sequence[int]) -> None:
        """No handler can start in these slots, until `slots_ready`."""

    def cannot_load(self, reason: str) -> None:
        """No process can load the handler."""
