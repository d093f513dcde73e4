"""Measure what a limit on all workers costs, and that it holds while workers are killed.

Everything runs on the broker's machine. The limit's tokens are published as the operator does it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hack.bench import report
from hack.bench.report import Report, Row
from hack.cluster.console import step
from tests.support.limits import NAME, make_tokens, most_at_once
from tests.support.rabbitmq import DEFAULT, RELEASES, VirtualHost, running
from tests.support.wait import eventually
from tests.support.worker import Worker, Workers
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract import topology
from workqueue.contract.binding import from_url

NO_OP: Final = "hack.bench.noop:handle"
RECORDED: Final = "tests.support.jobs:handle"
SLOTS: Final = (1, 8)
ROUNDS: Final = 7
QUICK_ROUNDS: Final = 2
MESSAGES: Final = 8_000
WARM: Final = 500
TOKENS: Final = 100
MOST_COST: Final = 0.10

WORKERS: Final = 20
LIMIT: Final = 5
JOBS: Final = 3_000
KILLS: Final = 10
KILL_SECONDS: Final = 2.0
DRAIN_SECONDS: Final = 300.0


def measure(*, quick: bool, folder: Path) -> Report:  # noqa: ARG001 - as the other families
    """Measure cost and safety on each RabbitMQ."""
    rows: list[Row] = []
    versions: dict[str, str] = {}
    for series in [DEFAULT] if quick else RELEASES:
        with running(series, management=False) as broker:
            versions[f"RabbitMQ {series}"] = broker.version
            for slots in SLOTS:
                with step(f"Measuring the cost of a limit: RabbitMQ {series}, {slots} slots"):
                    rows.append(_cost(broker, slots, QUICK_ROUNDS if quick else ROUNDS))
            with step(f"Measuring a limit while workers are killed: RabbitMQ {series}"):
                rows.append(_safety(broker, KILLS // 3 if quick else KILLS))
    name = "limits-quick" if quick else "limits"
    return Report(name, "Limits, measured", report.surroundings(versions), rows, "others")


def _publish(vhost: VirtualHost, bodies: Sequence[bytes]) -> None:
    with PublishPipeline(lambda: from_url(vhost.url), "bench") as pipeline:
        pipeline.declare_plan(topology.plan(topology.QueueSettings("jobs"))).result()
        for confirmed in [pipeline.submit(Outgoing("jobs", body), lambda: True) for body in bodies]:
            confirmed.result()


def _cost(broker: Any, slots: int, rounds: int) -> Row:
    """Compare the messages per second of one worker with a limit that it never reaches, and without one."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for limited in (True, False) if number % 2 else (False, True):
            with broker.new_vhost() as vhost:
                rates[limited].append(_rate(vhost, slots, limited=limited))
    ratios = [with_limit / without for with_limit, without in zip(rates[True], rates[False], strict=True)]
    cost = 1 - statistics.median(ratios)
    with_limit, without = (statistics.median(rates[limited]) for limited in (True, False))
    return Row(
        f"A limit that is not reached, {slots} slot{'s' if slots > 1 else ''}, RabbitMQ {broker.version}",
        f"{with_limit:,.0f} of {without:,.0f} messages/s, {cost:.1%} less (median of {rounds} rounds)",
        f"at most {MOST_COST:.0%} less",
        cost <= MOST_COST,
        raw={"with_limit": rates[True], "without": rates[False]},
    )


def _rate(vhost: VirtualHost, slots: int, *, limited: bool) -> float:
    make_tokens(vhost, TOKENS)
    _publish(vhost, [b"x" * 100] * MESSAGES)
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers(Path(folder))
        try:
            worker = workers.start(
                vhost.url,
                "--concurrency",
                str(slots),
                "--log-level",
                "warning",
                "--port",
                "0",
                *(("--limit-queue", NAME) if limited else ()),
                handler=NO_OP,
                environment={"BENCH_COUNT": str(MESSAGES), "BENCH_WARM": str(WARM)},
            )
            return float(eventually(lambda: _printed(worker), DRAIN_SECONDS))
        finally:
            workers.close()


def _printed(worker: Worker) -> str:
    return worker.log.partition("rate=")[2].partition("\n")[0]


def _safety(broker: Any, kills: int) -> Row:
    """Kill workers while 20 of them share a limit of 5."""
    with broker.new_vhost() as vhost, tempfile.TemporaryDirectory() as folder:
        make_tokens(vhost, LIMIT)
        _publish(vhost, [b'{"id": %d, "do": "sleep", "seconds": 0.02}' % number for number in range(JOBS)])
        workers = Workers(Path(folder))
        killed = []
        try:
            running_now = [_start(workers, vhost) for _ in range(WORKERS)]
            eventually(lambda: running_now[0].events)
            for _ in range(kills):
                time.sleep(KILL_SECONDS)
                victim = running_now.pop(0)
                victim.kill()
                killed.append(victim.process.pid)
                running_now.append(_start(workers, vhost))
            eventually(
                lambda: len(set(running_now[0].events_of("end"))) == JOBS, DRAIN_SECONDS, "all are handled"
            )
            events = running_now[0].events
        finally:
            workers.close()
    most = most_at_once(events, killed)
    ends = [float(event["at"]) for event in events if event["event"] == "end"]
    return Row(
        f"{WORKERS} workers, a limit of {LIMIT}, {kills} kills, RabbitMQ {broker.version}",
        f"at most {most} handlers at the same time, {len(ends) / (max(ends) - min(ends)):,.0f} handlers of 20 ms "
        "per second",
        f"never more than {LIMIT}",
        most <= LIMIT,
    )


def _start(workers: Workers, vhost: VirtualHost) -> Worker:
    return workers.start(vhost.url, "--limit-queue", NAME, "--log-level", "warning", handler=RECORDED)
