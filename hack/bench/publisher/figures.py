"""Run all contenders in rounds, and report the medians in rows, a table and a plot."""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

import pika

from hack.bench import environment, report
from hack.bench.plot import Panel, Plot, Series, draw
from hack.bench.publisher.contenders import (
    BASELINE,
    BASELINE_OF_THREADS,
    CONTENDERS,
    MANY,
    MANY_ASYNC,
    ONE_BY_ONE,
    OURS,
    TASKS,
    THREADS,
)
from hack.bench.report import Report, Row
from hack.cluster.console import step
from tests.support.rabbitmq import DEFAULT, running

KINDS: Final = ("classic", "quorum")
MESSAGES: Final = 20_000
ROUNDS: Final = 16
QUICK_ROUNDS: Final = 1
PIPELINE_GOALS: Final = {THREADS: 0.9, MANY: 0.9, TASKS: 1.0, MANY_ASYNC: 0.9}
"""Of each contender, as a multiple of the best bare pipeline with as many unconfirmed messages."""

ONE_BY_ONE_GOAL: Final = 10

Rates: TypeAlias = dict[str, list[float]]
"""The messages per second of each contender, by round."""


def measure(*, quick: bool, folder: Path) -> Report:
    """Measure all contenders, and write the plot to the folder.

    Raises:
        BenchError: the benchmarks' environment cannot be made.
        ClusterError: aio-pika failed.
    """
    name = "publisher-quick" if quick else "publisher"
    environment.python()
    found: dict[str, Rates] = {}
    gc.collect()
    gc.freeze()  # the objects of this program would be searched for garbage while a contender runs
    with running(DEFAULT, management=False) as broker:
        for kind in KINDS:
            with step(f"Measuring the publisher: {kind}"):
                found[kind] = _rounds(broker.url, kind, QUICK_ROUNDS if quick else ROUNDS)
        where = report.surroundings({"RabbitMQ": broker.version, **environment.versions("pika", "aio-pika")})
    _draw(found, folder / f"{name}.png")
    rows = [_row(kind, found[kind], who) for kind in KINDS for who in PIPELINE_GOALS]
    return Report(
        name, "The publisher, measured", where, rows, "others", _table(found, name), {"publisher": found}
    )


def ratios(rates: Rates, name: str, base: str) -> list[float]:
    """Return the rate of a contender in each round, as a multiple of another contender's rate."""
    return [one / other for one, other in zip(rates[name], rates[base], strict=True)]


def _rounds(url: str, kind: str, rounds: int) -> Rates:
    queue = f"bench-{kind}"
    rates: Rates = {}
    for number in range(rounds):
        # The broker still works on the queue of the contender before, so no contender always follows the same one.
        for name in random.Random(number).sample(list(CONTENDERS), len(CONTENDERS)):
            pair = [(name, name)]
            if name in PIPELINE_GOALS:
                # A machine changes its speed within seconds, so the two run alternately.
                pair.insert(number % 2, (_beside(name), _base(name)))
            for key, contender in pair:
                with pika.BlockingConnection(pika.URLParameters(url)) as connection:
                    channel = connection.channel()
                    channel.queue_delete(queue)
                    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
                rates.setdefault(key, []).append(CONTENDERS[contender](url, queue, MESSAGES))
    return rates


def _base(name: str) -> str:
    """Return the bare pipeline with as many unconfirmed messages. A thread waits for its own confirmation."""
    return BASELINE_OF_THREADS if name == THREADS else BASELINE


def _beside(name: str) -> str:
    return f"{_base(name)}, beside {name}"


def _of_pipeline(rates: Rates, name: str) -> list[float]:
    """Return the rate of a contender as a multiple of the bare pipeline with 1,000 unconfirmed messages."""
    is_paired = name in PIPELINE_GOALS and _base(name) == BASELINE
    return ratios(rates, name, _beside(name) if is_paired else BASELINE)


def _row(kind: str, rates: Rates, name: str) -> Row:
    base = _base(name)
    bare, single = ratios(rates, name, _beside(name)), ratios(rates, name, ONE_BY_ONE)
    beside, times = statistics.median(bare), statistics.median(single)
    is_pipelined = name != THREADS
    others = [other for other in CONTENDERS if other.startswith("aio-pika")]
    goal = PIPELINE_GOALS[name]
    return Row(
        f"{name}, {kind} queue, 100 B, persistent, mandatory, confirmed",
        f"{beside:.2f} x {base} ({_spread(bare)}), {times:.0f} x one confirmation at a time "
        f"({min(single):.0f} to {max(single):.0f}); {statistics.median(rates[name]):,.0f} messages/s",
        f">= {goal} x {base}" + (f", >= {ONE_BY_ONE_GOAL} x one at a time" if is_pipelined else ""),
        beside >= goal and (times >= ONE_BY_ONE_GOAL or not is_pipelined),
        ", ".join(f"{other} {statistics.median(ratios(rates, other, BASELINE)):.2f} x" for other in others),
        {"of_bare_pipeline": bare, "of_one_by_one": single},
    )


def _table(found: dict[str, Rates], name: str) -> str:
    head = ["publisher"]
    for kind in KINDS:
        head += [f"{kind}, messages/s", "x bare pipeline"]
    body = []
    for who in CONTENDERS:
        line = [who]
        for kind in KINDS:
            bare = _of_pipeline(found[kind], who)
            line += [
                f"{statistics.median(found[kind][who]):,.0f}",
                f"{statistics.median(bare):.2f} ({_spread(bare)})",
            ]
        body.append(line)
    return (
        f"![Messages per second of each publisher]({name}.png)\n\n{report.grid(head, body)}\n\n"
        "Medians over the rounds, with the smallest and the largest in brackets. "
        "Each ratio compares rates of the same round."
    )


def _draw(found: dict[str, Rates], file: Path) -> None:
    panels = []
    for kind, rates in found.items():
        series = Series(
            "",
            x=list(CONTENDERS),
            y=[statistics.median(rates[who]) for who in CONTENDERS],
            low=[min(rates[who]) for who in CONTENDERS],
            high=[max(rates[who]) for who in CONTENDERS],
            texts=[f"{statistics.median(_of_pipeline(rates, who)):.2f} x" for who in CONTENDERS],
            colors=[
                0 if who in OURS else 2 if who in (BASELINE, BASELINE_OF_THREADS) else 3 for who in CONTENDERS
            ],
        )
        panels.append(Panel(f"{kind} queue", "bars", [series], x_label="messages/s"))
    caption = (
        "Medians; whiskers from the smallest to the largest round; x: multiples of the best bare pipeline."
    )
    draw(Plot("Publishing with confirmation", panels, caption=caption), file)


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
