"""The signals that end a worker."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from workqueue.worker.drain import SIGNALS, Signals
from workqueue.worker.supervisor import SupervisedProcess

PATIENCE = 20.0


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_before_the_wait_is_not_lost(signals: Signals, number: signal.Signals) -> None:
    signal.raise_signal(number)
    assert signals.wait(PATIENCE)
    assert not signals.wait(0)


def test_signal_during_the_wait_ends_it(signals: Signals) -> None:
    main = threading.main_thread().ident
    assert main is not None
    sender = threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGTERM))
    sender.start()
    assert signals.wait(PATIENCE)
    sender.join()


def test_each_signal_counts(signals: Signals) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    assert signals.wait(PATIENCE)
    assert signals.wait(PATIENCE)


def test_interrupt_ends_the_wait_without_a_signal(signals: Signals) -> None:
    threading.Thread(target=signals.interrupt).start()
    assert signals.wait() is False
    signal.raise_signal(signal.SIGTERM)
    assert signals.wait(PATIENCE) is True


def test_first_signal_is_ignored_when_the_worker_ends_by_itself(signals: Signals) -> None:
    signals.ignore_first()
    signal.raise_signal(signal.SIGTERM)
    assert not signals.wait(0)
    signal.raise_signal(signal.SIGTERM)
    assert signals.wait(PATIENCE)


@pytest.mark.usefixtures("signals")
def test_parent_that_ignores_ends_of_processes_hides_none_from_the_worker() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        Signals()

        assert SupervisedProcess(["true"]).wait() == 0
    finally:
        signal.signal(signal.SIGCHLD, before)
