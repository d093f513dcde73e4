"""Write the tables and plots: the operator beside KEDA, the effect of settings, and 100,000 queues."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeAlias

from hack.bench import report
from hack.bench.plot import Panel, Plot, Series, draw
from hack.bench.report import Report, Row
from hack.bench.simulation import oracle, shards
from hack.bench.simulation.jobs import HOUR, WORKLOADS, JobMix
from hack.bench.simulation.keda import Keda
from hack.bench.simulation.operator import Operator
from hack.bench.simulation.outcome import Summary, simulate
from hack.bench.simulation.world import START_SECONDS, Autoscaler, Outcome
from hack.cluster.console import step

OURS: Final = "workqueue-operator"
DEFAULTS: Final = "KEDA, defaults"
FAST: Final = "KEDA, polling each second"

AUTOSCALERS: Final[dict[str, Callable[[JobMix], Autoscaler]]] = {
    OURS: Operator,
    DEFAULTS: Keda,
    FAST: lambda workload: Keda(workload, polling_seconds=1.0),
}
COLORS: Final = {OURS: 0, DEFAULTS: 4, FAST: 2}

DELAYS: Final = (0, 10, 30, 60, 120, 300)
TARGETS: Final = (1, 2, 5, 10)
DRAINS: Final = (30, 300)
TRIED_ON: Final = ("bursts", "steady", "heavy tail", "recorded")
TRIED_ON_QUICK: Final = ("bursts",)
OPERATORS: Final = (1, 2, 5, 10, 20, 50, 100)
PLOTTED: Final = (("bursts", 44 * 60.0, 84 * 60.0), ("recorded", 3_925 * 60.0, 3_960 * 60.0))
"""The plotted part of each workload, in seconds from its start."""

WAKES_PER_SECOND: Final = (10.0, 100.0)

IN_TIME_GOAL: Final = 0.99
COST_GOAL: Final = 1.2
WAIT_DELAYS: Final = (0, 60)
"""Values of scaleInDelaySeconds: a pod leaves at once, or after the default delay."""

Outcomes: TypeAlias = dict[str, tuple[Summary, Outcome]]


def measure(*, quick: bool, folder: Path) -> Report:
    """Run all simulations, and write the plots to the folder.

    Args:
        quick: simulate fewer workloads for the settings.
        folder: may contain `operator.json.gz`, the source of the unit costs.

    Raises:
        BenchError: drawing a plot failed.
    """
    tried_on = TRIED_ON_QUICK if quick else TRIED_ON
    workloads = [make() for make in WORKLOADS]
    with step("Simulating autoscalers"):
        compared = {
            workload.name: {name: simulate(workload, make(workload)) for name, make in AUTOSCALERS.items()}
            for workload in workloads
        }
    with step("Simulating settings"):
        settings = {one.name: _settings(one) for one in workloads if one.name in tried_on}
    with step("Simulating waiting time as the target"):
        waits = {one.name: _waits(one) for one in workloads}
    _draw_compared(compared, folder / "simulation.png")
    _draw_settings(settings, folder / "simulation-settings.png")
    parts = [_text(), *(_compared_table(workload, compared[workload.name]) for workload in workloads)]
    parts += [_waits_text(), *(_waits_table(one, waits[one.name]) for one in workloads)]
    parts += [_settings_text(), *(_settings_table(name, found) for name, found in settings.items())]
    costs = shards.from_results(report.results_file(folder, "operator-quick" if quick else "operator"))
    if costs is not None:
        parts.append(_shards_text(costs))
        _draw_shards(costs, folder / "simulation-shards.png")
    return Report(
        "simulation",
        "Autoscalers, simulated",
        report.surroundings({}),
        [
            *(_row(workload, compared[workload.name]) for workload in workloads),
            *(_wait_row(workload, waits[workload.name]) for workload in workloads),
        ],
        "KEDA with a HorizontalPodAutoscaler",
        "\n\n".join(parts),
        {
            "compared": {
                name: {who: asdict(found[0]) for who, found in outcomes.items()}
                for name, outcomes in compared.items()
            },
            "waits": {
                name: [asdict(one) | {"cost": one.cost} for one in policies]
                for name, policies in waits.items()
            },
            "settings": {
                name: {setting: asdict(found) for setting, found in many.items()}
                for name, many in settings.items()
            },
            "unit_costs": None if costs is None else asdict(costs),
        },
    )


# -- beside KEDA -------------------------------------------------------------------------------------


def _row(workload: JobMix, outcomes: Outcomes) -> Row:
    ours = outcomes[OURS][0]
    peers = "; ".join(f"{name}: {_words(outcomes[name][0])}" for name in (DEFAULTS, FAST))
    return Row(f"{workload.name}: {workload.what}", _words(ours), "", None, peers, load=0.0)


def _words(found: Summary) -> str:
    return (
        f"wait p50 {found.wait_p50:.1f} s, p99 {found.wait_p99:.0f} s; {found.replica_hours:.1f} replica-hours; "
        f"{found.writes} writes; {found.interrupted} busy workers terminated"
    )


def _text() -> str:
    return f"""\
![Replicas and backlog age over time](simulation.png)

## The simulation

There is one queue. Its workers have one slot each and start in {START_SECONDS:g} s. The clock jumps from event to
event. The simulated operator calls the real `decide` when the operator does: at the ring of the doorbell, then twice
per second. All settings have their defaults, and `messagesPerReplica` is the same for all autoscalers. KEDA and the
HorizontalPodAutoscaler are a model ([keda.py](../../hack/bench/simulation/keda.py)): polling every 30 s or every
second, cooldown 300 s, sync every 15 s, tolerance 0.1, per step at most to double or to 4, 300 s of stabilization
before scale-in. The model favours them: their message count is exact, current, and includes messages being handled.
A job that still runs 30 s after the termination of its pod is killed and restarted. The machine and its load do not
matter."""


def _compared_table(workload: JobMix, outcomes: Outcomes) -> str:
    head = ["", "wait p50", "p99", "longest", "mean backlog age", "replica-hours", "used", "writes"]
    head += ["busy terminated", "jobs restarted"]
    body = []
    for name, (found, _) in outcomes.items():
        seconds = (found.wait_p50, found.wait_p99, found.wait_max, found.age_mean)
        line = [name, *(f"{value:.1f} s" for value in seconds), f"{found.replica_hours:.1f}"]
        line += [f"{found.utilization:.0%}", str(found.writes), str(found.interrupted), str(found.repeated)]
        body.append(line)
    title = f"{workload.name[0].upper()}{workload.name[1:]}"
    return (
        f"## {title}\n\n{len(workload.jobs):,} messages: {workload.what}; messagesPerReplica "
        f"{workload.messages_per_replica}, maxReplicas {workload.max_replicas}.\n\n{report.grid(head, body)}"
    )


def _draw_compared(compared: dict[str, Outcomes], file: Path) -> None:
    panels = []
    for name, begin, end in PLOTTED:
        counts = [
            Series(who, *_between(outcome.counts, begin, end), colors=[COLORS[who]])
            for who, (_, outcome) in reversed(compared[name].items())
        ]
        ages = [
            Series(who, *_ages(outcome, begin, end), colors=[COLORS[who]])
            for who, (_, outcome) in reversed(compared[name].items())
        ]
        panels += [
            Panel(f"{name}: replicas", "steps", counts, "minutes", "replicas"),
            Panel(f"{name}: age of the oldest waiting message", "lines", ages, "minutes", "seconds"),
        ]
    draw(Plot("Each autoscaler with the same messages", panels, size=(6.5, 3.2)), file)


def _between(steps: list[tuple[float, int]], begin: float, end: float) -> tuple[list[float], list[float]]:
    before = [count for at, count in steps if at <= begin]
    chosen = [
        (begin, before[-1] if before else 0),
        *((at, count) for at, count in steps if begin < at < end),
    ]
    chosen.append((end, chosen[-1][1]))
    return [at / 60 for at, _ in chosen], [float(count) for _, count in chosen]


def _ages(outcome: Outcome, begin: float, end: float, points: int = 600) -> tuple[list[float], list[float]]:
    """Return the highest age in each of `points` intervals. An age grows until a worker takes the message."""
    width = (end - begin) / points
    highest = [0.0] * points
    for (at, published), (until, _) in zip(outcome.oldest, outcome.oldest[1:], strict=False):
        if published is None or until < begin or at >= end:
            continue
        for number in range(
            max(0, int((at - begin) / width)), min(points - 1, int((until - begin) / width)) + 1
        ):
            moment = min(until, begin + (number + 1) * width)
            highest[number] = max(highest[number], moment - published)
    return [(begin + (number + 0.5) * width) / 60 for number in range(points)], highest


# -- waiting time as the target ----------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """A target of the operator on one workload.

    Attributes:
        delay: scaleInDelaySeconds.
        in_time: the share of messages that start within `max_wait_seconds`.
        plan: of the oracle, with full knowledge.
    """

    name: str
    delay: int
    in_time: float
    plan: oracle.Plan
    summary: Summary

    @property
    def cost(self) -> float:
        """Replica-hours, as a multiple of the oracle's."""
        return self.summary.replica_hours * HOUR / self.plan.replica_seconds


def _waits(workload: JobMix) -> list[Policy]:
    limit = workload.max_wait_seconds
    targets: tuple[dict[str, int], ...] = (
        {"messagesPerReplica": workload.messages_per_replica},
        {"targetDrainSeconds": limit},
        {"maxWaitSeconds": limit},
    )
    policies = []
    plan = oracle.plan(workload, limit)
    for delay in WAIT_DELAYS:
        for target in targets:
            found, outcome = simulate(workload, Operator(workload, scaleInDelaySeconds=delay, **target))
            in_time = sum(wait <= limit for wait in outcome.waits) / len(workload.jobs)
            name = next(f"{name} {value}" for name, value in target.items())
            policies.append(Policy(name, delay, in_time, plan, found))
    return policies


def _wait_row(workload: JobMix, policies: list[Policy]) -> Row:
    ours = [one for one in policies if one.name.startswith("maxWaitSeconds")]
    words = "; ".join(
        f"scaleInDelaySeconds {one.delay}: {one.in_time:.1%} in time, {one.cost:.2f} times the oracle"
        for one in ours
    )
    return Row(
        f"{workload.name}, maxWaitSeconds {workload.max_wait_seconds}",
        words,
        f"{IN_TIME_GOAL:.0%} in time at {COST_GOAL} times an oracle's replica-hours or less",
        ours[0].in_time >= IN_TIME_GOAL and ours[0].cost <= COST_GOAL,
        "",
        load=0.0,
    )


def _waits_text() -> str:
    return f"""\
## Waiting time as the target

The operator's three targets on the same loads, beside an [oracle](../../hack/bench/simulation/oracle.py). The oracle
knows every message and the time of its handler in advance. It starts every message in time, pays {START_SECONDS:g} s
for the start of each pod, and removes a pod as soon as it has no message. "In time" is the share of messages that
start within `maxWaitSeconds`. `targetDrainSeconds` has the same number of seconds. The operator learns handler times
only from handlers that have returned. The goal is for `scaleInDelaySeconds` 0: a longer delay keeps idle pods for its
time, which the oracle never does. [Waiting time](../waiting-time.md) describes the target."""


def _waits_table(workload: JobMix, policies: list[Policy]) -> str:
    head = [
        f"{workload.name}, {workload.max_wait_seconds} s",
        "scaleInDelaySeconds",
        "in time",
        "wait p50",
        "p99",
    ]
    head += ["replica-hours", "times the oracle", "used", "writes"]
    body = [
        [
            one.name,
            str(one.delay),
            f"{one.in_time:.2%}",
            f"{one.summary.wait_p50:.1f} s",
            f"{one.summary.wait_p99:.1f} s",
            f"{one.summary.replica_hours:.2f}",
            f"{one.cost:.2f}",
            f"{one.summary.utilization:.0%}",
            str(one.summary.writes),
        ]
        for one in policies
    ]
    plan = policies[0].plan
    in_time = 1 - plan.late / len(workload.jobs)
    body.append(
        ["oracle", "", f"{in_time:.2%}", "", "", f"{plan.replica_seconds / HOUR:.2f}", "1.00", "", ""]
    )
    return report.grid(head, body)


# -- settings ----------------------------------------------------------------------------------------


def _settings(workload: JobMix) -> dict[str, Summary]:
    tried = [
        *((f"scaleInDelaySeconds {delay}", {"scaleInDelaySeconds": delay}) for delay in DELAYS),
        *((f"messagesPerReplica {target}", {"messagesPerReplica": target}) for target in TARGETS),
        *((f"targetDrainSeconds {drain}", {"targetDrainSeconds": drain}) for drain in DRAINS),
    ]
    return {name: simulate(workload, Operator(workload, **scaling))[0] for name, scaling in tried}


def _settings_text() -> str:
    return """\
## The effect of settings

![Replica-hours and backlog age for each setting](simulation-settings.png)

Each row changes one setting. All others have their defaults (`scaleInDelaySeconds` 60). A longer delay costs replicas
and saves writes, but hardly changes the waiting time. 60 s saves most of the writes at a low price: 300 s costs up to
four times the replica-hours. `messagesPerReplica` trades replicas for waiting time. It matters most with long
handlers, and should be small there. `targetDrainSeconds` needs no such choice if all handlers take about the same
time. With a heavy tail, the mean of the last minute predicts little, and messages wait longer."""


def _settings_table(name: str, found: dict[str, Summary]) -> str:
    head = [name, "wait p50", "p99", "mean backlog age", "replica-hours", "used", "writes"]
    body = [
        [
            setting,
            f"{one.wait_p50:.1f} s",
            f"{one.wait_p99:.1f} s",
            f"{one.age_mean:.1f} s",
            f"{one.replica_hours:.1f}",
            f"{one.utilization:.0%}",
            str(one.writes),
        ]
        for setting, one in found.items()
    ]
    return report.grid(head, body)


def _draw_settings(settings: dict[str, dict[str, Summary]], file: Path) -> None:
    panels = []
    for name, found in settings.items():
        series = [
            _curve(label, {key.split()[1]: one for key, one in found.items() if key.startswith(label)}, color)
            for label, color in (("scaleInDelaySeconds", 0), ("messagesPerReplica", 4))
        ]
        panels.append(Panel(name, "points", series, "replica-hours", "mean backlog age (s)"))
    caption = "The number beside a point is the setting. Further left is cheaper, lower is faster."
    draw(Plot("The effect of two settings", panels, size=(5.5, 3.4), caption=caption), file)


def _curve(label: str, found: dict[str, Summary], color: int) -> Series:
    many = found.values()
    x, y = [one.replica_hours for one in many], [one.age_mean for one in many]
    return Series(label, x=x, y=y, texts=list(found), colors=[color])


# -- very many queues --------------------------------------------------------------------------------


def _shards_text(costs: shards.UnitCosts) -> str:
    parts = [
        f"""\
## {shards.QUEUES:,} queues

One operator [needs](operator.md) {costs.base_mib:.0f} MiB, and {costs.queue_kib:.0f} KiB for each WorkQueue. At rest
it uses {costs.base_cores:.4f} core, and {costs.queue_cores * 1e6:.1f} millionths of a core for each WorkQueue. A
restart takes {costs.restart_seconds * 1000:.1f} ms for each WorkQueue. A wake and the scale-in after it take
{costs.wake_processor_seconds * 1000:.1f} ms of processor time. An operator "fits" if it needs at most
{shards.MEMORY_MIB} MiB and {shards.HEADROOM:g} core, and installs all doorbells within {shards.RESTART_SECONDS:.0f} s
of a restart. Wakes come at random times, and an operator handles them one after another. One that needs a whole
core at rest never gets to them.
[ADR 5](../adr/0005-shards.md) describes how releases share the queues.

![Wake latency and memory by the number of operators](simulation-shards.png)"""
    ]
    head = [
        "operators",
        "WorkQueues each",
        "memory",
        "processor",
        "restart to all doorbells",
        "wake p50",
        "wake p99",
    ]
    for rate in WAKES_PER_SECOND:
        body = []
        for count in OPERATORS:
            plan = shards.plan(costs, count, rate)
            line = [
                f"{count}{' (fits)' if plan.fits else ''}",
                f"{plan.queues:,}",
                f"{plan.memory_mib:,.0f} MiB",
            ]
            line += [f"{plan.cores:.2f} core", f"{plan.restart_seconds:.0f} s"]
            line += [
                f"{seconds * 1000:.0f} ms" if math.isfinite(seconds) else "never"
                for seconds in (plan.wake_p50, plan.wake_p99)
            ]
            body.append(line)
        parts.append(f"{rate:.0f} wakes per second over all queues:\n\n{report.grid(head, body)}")
    return "\n\n".join(parts)


def _draw_shards(costs: shards.UnitCosts, file: Path) -> None:
    def series(value: Callable[[shards.ShardPlan], float], rate: float, color: int) -> Series:
        plans = [shards.plan(costs, count, rate) for count in OPERATORS]
        values = {plan.operators: value(plan) for plan in plans}
        finite = {count: number for count, number in values.items() if number < float("inf")}
        return Series(f"{rate:.0f} wakes/s", x=list(finite), y=list(finite.values()), colors=[color])

    colors = (0, 4)
    panels = [
        Panel(
            "wake p99",
            "points",
            [
                series(lambda plan: plan.wake_p99 * 1000, rate, color)
                for rate, color in zip(WAKES_PER_SECOND, colors, strict=True)
            ],
            "operators",
            "ms",
            x_log=True,
            y_log=True,
            limit=50.0,
        ),
        Panel(
            "memory of each operator",
            "points",
            [series(lambda plan: plan.memory_mib, WAKES_PER_SECOND[0], 0)],
            "operators",
            "MiB",
            x_log=True,
            y_log=True,
            limit=float(shards.MEMORY_MIB),
        ),
        Panel(
            "restart to all doorbells",
            "points",
            [series(lambda plan: plan.restart_seconds, WAKES_PER_SECOND[0], 0)],
            "operators",
            "s",
            x_log=True,
            y_log=True,
            limit=shards.RESTART_SECONDS,
        ),
    ]
    title = f"{shards.QUEUES:,} queues by the number of operators"
    draw(Plot(title, panels, columns=3, size=(4.0, 3.2)), file)
