"""Measure what a limit on all workers costs, how exact a rate is, and that a limit holds while workers are killed.

Everything runs on the broker's machine. The limit's tokens are published as the operator does it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

from hack.bench import report
from hack.bench.report import Report, Row
from hack.cluster.console import step
from tests.support import rates
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
NOT_REACHED: Final = topology.RateLimit(rates.NAME, 10_000, 2_000)
MOST_COST: Final = 0.10

RATE: Final = topology.RateLimit(rates.NAME, 100, 20)
RATED_WORKERS: Final = (1, 5, 50)
RATED_SECONDS: Final = 60
QUICK_RATED_SECONDS: Final = 10
MOST_DEVIATION: Final = 0.02

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
            rounds = QUICK_ROUNDS if quick else ROUNDS
            for slots in SLOTS:
                with step(f"Measuring the cost of a limit: RabbitMQ {series}, {slots} slots"):
                    rows.append(_cost(broker, slots, rounds))
                with step(f"Measuring the cost of a rate: RabbitMQ {series}, {slots} slots"):
                    rows.append(_cost(broker, slots, rounds, NOT_REACHED))
            for count in RATED_WORKERS:
                with step(f"Measuring a rate: RabbitMQ {series}, {count} workers"):
                    rows.append(_precision(broker, count, QUICK_RATED_SECONDS if quick else RATED_SECONDS))
            with step(f"Measuring a limit while workers are killed: RabbitMQ {series}"):
                rows.append(_safety(broker, KILLS // 3 if quick else KILLS))
    name = "limits-quick" if quick else "limits"
    return Report(name, "Limits, measured", report.surroundings(versions), rows, "others")


def _publish(vhost: VirtualHost, bodies: Sequence[bytes]) -> None:
    with PublishPipeline(lambda: from_url(vhost.url), "bench") as pipeline:
        pipeline.declare_plan(topology.plan(topology.QueueSettings("jobs"))).result()
        for confirmed in [pipeline.submit(Outgoing("jobs", body), lambda: True) for body in bodies]:
            confirmed.result()


def _cost(broker: Any, slots: int, rounds: int, rate: topology.RateLimit | None = None) -> Row:
    """Compare the messages per second of one worker with a limit that it never reaches, and without one.

    Args:
        rate: a limit per second. None: one on handlers that run at the same time.
    """
    per_second: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for limited in (True, False) if number % 2 else (False, True):
            with broker.new_vhost() as vhost:
                per_second[limited].append(_rate(vhost, slots, limited=limited, rate=rate))
    pairs = zip(per_second[True], per_second[False], strict=True)
    cost = 1 - statistics.median(with_limit / without for with_limit, without in pairs)
    with_limit, without = (statistics.median(per_second[limited]) for limited in (True, False))
    return Row(
        f"A {'limit' if rate is None else 'rate'} that is not reached, {slots} slot{'s' if slots > 1 else ''}, "
        f"RabbitMQ {broker.version}",
        f"{with_limit:,.0f} of {without:,.0f} messages/s, {cost:.1%} less (median of {rounds} rounds)",
        f"at most {MOST_COST:.0%} less",
        cost <= MOST_COST,
        raw={"with_limit": per_second[True], "without": per_second[False]},
    )


def _rate(vhost: VirtualHost, slots: int, *, limited: bool, rate: topology.RateLimit | None) -> float:
    operator: AbstractContextManager[None] = nullcontext()
    flags = ("--limit-queue", NAME)
    if rate is None:
        make_tokens(vhost, TOKENS)
    elif limited:
        operator, flags = rates.leader_in_a_thread(vhost, rate), ("--limit-rate-queue", rate.name)
    _publish(vhost, [b"x" * 100] * MESSAGES)
    with operator, tempfile.TemporaryDirectory() as folder:
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
                *(flags if limited else ()),
                handler=NO_OP,
                environment={"BENCH_COUNT": str(MESSAGES), "BENCH_WARM": str(WARM)},
            )
            return float(eventually(lambda: _printed(worker), DRAIN_SECONDS))
        finally:
            workers.close()


def _printed(worker: Worker) -> str:
    return worker.log.partition("rate=")[2].partition("\n")[0]


def _precision(broker: Any, count: int, seconds: int) -> Row:
    """Count the handlers that workers start under a limit per second, after the first second."""
    with broker.new_vhost() as vhost, tempfile.TemporaryDirectory() as folder:
        _publish(vhost, [b'{"id": %d}' % number for number in range(int(RATE.per_second * (seconds + 5)))])
        workers = Workers(Path(folder))
        try:
            several = [
                workers.start(vhost.url, "--limit-rate-queue", RATE.name, handler=RECORDED)
                for _ in range(count)
            ]
            for worker in several:
                worker.wait_consuming()
            with rates.leader_in_a_thread(vhost, RATE):
                eventually(lambda: several[0].events)
                begun = time.time() + 1
                time.sleep(seconds + 2)
            times = rates.starts(several[0].events)
        finally:
            workers.close()
    measured = sum(begun <= at < begun + seconds for at in times) / seconds
    workers_text = f"{count} worker{'s' if count > 1 else ''}"
    return Row(
        f"{RATE.per_second:g} starts per second, {workers_text}, RabbitMQ {broker.version}",
        f"{measured:.1f} per second over {seconds} s",
        f"within {MOST_DEVIATION:.0%}",
        abs(measured / RATE.per_second - 1) <= MOST_DEVIATION,
    )


def _safety(broker: Any, kills: int) -> Row:
    """Kill workers while 20 of them share a limit of 5."""
    with broker.new_vhost() as vhost, tempfile.TemporaryDirectory() as folder:
        make_tokens(vhost, LIMIT)
        _publish(vhost, [b'{"id": %d, "do": "sleep", "seconds": 0.02}' % number for number in range(JOBS)])
        workers = Workers(Path(folder))
        killed: dict[int, float] = {}
        try:
            running_now = [_start(workers, vhost) for _ in range(WORKERS)]
            eventually(lambda: running_now[0].events)
            for _ in range(kills):
                time.sleep(KILL_SECONDS)
                victim = running_now.pop(0)
                killed[victim.process.pid] = time.time()
                victim.kill()
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
