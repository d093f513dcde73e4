"""Make the missing parts of a start, side by side, and show how long that still takes.

A part may need others. All parts that need nothing unfinished run at the same time, each in a thread of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Final

from hack.cluster import commands, console

SHORT_SECONDS: Final = 30.0

CLUSTER: Final = "the cluster"
"""The name of the part that starts a cluster of any kind."""


@dataclass(frozen=True)
class Part:
    """Something to make.

    Attributes:
        name: a noun phrase that makes sense alone in a list.
        seconds: the usual duration on two cores.
        needs: the names of the parts that must be finished first. A name that is not in the plan is ready.
    """

    name: str
    seconds: float
    make: Callable[[], object]
    needs: tuple[str, ...] = ()


def run(parts: Sequence[Part]) -> None:
    """Make all parts. The first failure ends the programs of all others.

    Raises:
        ClusterError: a part could not be made.
    """
    if not parts:
        return
    if remaining(parts) > SHORT_SECONDS:
        console.say("\n".join(announcement(parts)))
    order, by_name = _sorter(parts), {part.name: part for part in parts}
    order.prepare()
    began: dict[str, float] = {}
    ended: set[str] = set()

    def left() -> str:
        now = time.monotonic()
        elapsed = {name: now - start for name, start in began.items()}
        return about(remaining(parts, ended, elapsed)) + " left"

    with ThreadPoolExecutor(len(parts), thread_name_prefix="part") as threads, console.overall(left):
        running: dict[Future[object], str] = {}
        try:
            while order.is_active():
                for name in order.get_ready():
                    began[name] = time.monotonic()
                    running[threads.submit(by_name[name].make)] = name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    future.result()
                    ended.add(name)
                    order.done(name)
        except BaseException:
            commands.end_all()
            raise


def remaining(
    parts: Sequence[Part], ended: Collection[str] = (), elapsed: Mapping[str, float] | None = None
) -> float:
    """Return the seconds that the longest chain of unfinished parts still takes.

    Args:
        ended: the names of finished parts.
        elapsed: by the name of a running part, the seconds that it has taken so far.
    """
    by_name, elapsed, after = {part.name: part for part in parts}, elapsed or {}, dict[str, float]()
    for name in _sorter(parts).static_order():
        own = 0.0 if name in ended else max(by_name[name].seconds - elapsed.get(name, 0.0), 0.0)
        after[name] = own + max((after[need] for need in by_name[name].needs if need in by_name), default=0.0)
    return max(after.values(), default=0.0)


def announcement(parts: Sequence[Part]) -> list[str]:
    """Return the lines that say what a start makes, and how long each part and the whole takes."""
    width = max(len(part.name) for part in parts)
    names = {part.name for part in parts}
    lines = [
        f"  {part.name:{width}}  {about(part.seconds):12}"
        + (
            f"  after {' and '.join(needs)}"
            if (needs := [need for need in part.needs if need in names])
            else ""
        )
        for part in parts
    ]
    processors = os.cpu_count() or 1
    return [
        f"{len(parts)} parts are missing. Making them takes {about(remaining(parts))} on {processors} processors:",
        *(line.rstrip() for line in lines),
    ]


def about(seconds: float) -> str:
    """Return a duration in words, rounded up: `about 20 s`, `about 6 min`."""
    if seconds <= 90:
        return f"about {max(-(-int(seconds) // 10) * 10, 5)} s"
    return f"about {-(-int(seconds) // 60)} min"


def _sorter(parts: Sequence[Part]) -> TopologicalSorter[str]:
    names = {part.name for part in parts}
    return TopologicalSorter({part.name: [need for need in part.needs if need in names] for part in parts})
