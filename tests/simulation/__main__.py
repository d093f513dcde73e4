"""`python -m tests.simulation`: replay a seed as a story, or run many."""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any, Final

MOST_LINES: Final = 150
BATCH: Final = 20
SMALL_BATCH: Final = 4
"""Seeds in a batch while the first failing one is wanted."""


def main() -> int:
    """Parse the command line."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        _begin_again()
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="replay this seed and print its story")
    parser.add_argument("--shrink", action="store_true", help="leave out the steps that do not matter")
    parser.add_argument("--seeds", help="run the seeds FROM:TO, and print the failing ones")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--seconds", type=float, help="begin no further batch after so many seconds of processor time"
    )
    parser.add_argument("--mutant", help="take a fix out (a name of mutants.py)")
    parser.add_argument("--mutants", action="store_true", help="find the first seed for each mutant")
    options = parser.parse_args()
    sys.unraisablehook = lambda _: None
    if options.mutants:
        return _mutants(*map(int, (options.seeds or "0:1000").split(":")), options)
    if options.seed is not None:
        return _replay(options)
    return _many(*map(int, (options.seeds or "0:100").split(":")), options)


def _begin_again() -> None:
    """Become a process in which the order of sets of texts is the same in each run."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    if sysconfig.get_config_var("WITH_MIMALLOC"):
        # It is faster: a run frees little, because the garbage collector is off.
        environment |= {"PYTHONMALLOC": "mimalloc", "MIMALLOC_ALLOW_LARGE_OS_PAGES": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], environment)


def _mutation(name: str | None) -> Any:
    from contextlib import nullcontext

    from tests.simulation.mutants import MUTANTS

    return MUTANTS[name].apply if name else nullcontext


def _replay(options: Any) -> int:
    from tests.simulation.run import run, shrink
    from tests.simulation.scenario import draw

    mutate, scenario = _mutation(options.mutant), draw(options.seed)
    if options.shrink:
        scenario = shrink(scenario, mutate)
    result = run(scenario, mutate)
    for one in scenario.workqueues:
        print(
            f"WorkQueue {one.namespace}/{one.name} on {one.host}: {one.spec['scaling']} {one.spec['queue']}"
        )
    story = result.story
    if len(story) > MOST_LINES:
        print(f"({len(story) - MOST_LINES} earlier lines are left out)")
    for at, who, what in story[-MOST_LINES:]:
        print(f"{at:7.2f}  {who:<18} {what}")
    print(
        f"seed {options.seed}: {'; '.join(result.violations) or 'every property held'} ({result.cpu:.2f} s)"
    )
    return bool(result.violations)


def _batch(entry: tuple[int, int, str | None]) -> list[tuple[int, list[str], float]]:
    from tests.simulation.run import run
    from tests.simulation.scenario import draw

    first, last, mutant = entry
    mutate, results = _mutation(mutant), []
    for seed in range(first, last):
        try:
            result = run(draw(seed), mutate)
            results.append((seed, result.violations, result.cpu))
        except Exception as error:  # noqa: BLE001 - it is reported with its seed
            results.append((seed, [f"the simulation failed: {error!r}"], 0.0))
    return results


def _results(
    first: int, last: int, mutant: str | None, jobs: int, batch: int = BATCH
) -> Iterator[tuple[int, list[str], float]]:
    """Run seeds side by side. A process for each batch frees what a killed operator leaves behind."""
    import tests.simulation.mutants
    import tests.simulation.run  # noqa: F401 - once, before the processes are forked

    batches = [(n, min(n + batch, last), mutant) for n in range(first, last, batch)]
    with get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for some in pool.imap(_batch, batches, chunksize=1):
            yield from some


def _many(first: int, last: int, options: Any) -> int:
    begun, cpu, done, failed = time.monotonic(), 0.0, 0, Counter[str]()
    for seed, violations, seconds in _results(first, last, options.mutant, options.jobs):
        cpu, done = cpu + seconds, done + 1
        if violations:
            failed[violations[0].partition(":")[0]] += 1
            print(f"seed {seed}: {violations[0]}", flush=True)
        if options.seconds is not None and cpu >= options.seconds:
            break
    print(
        f"{done} seeds, {failed.total()} failed {dict(failed)}, {cpu / max(done, 1):.2f} s of processor time each, "
        f"{time.monotonic() - begun:.0f} s"
    )
    return bool(failed)


def _mutants(first: int, last: int, options: Any) -> int:
    from tests.simulation.mutants import MUTANTS

    missed = 0
    for name, mutant in MUTANTS.items():
        if options.mutant and options.mutant != name:
            continue
        hits = (hit for hit in _results(first, last, name, options.jobs, SMALL_BATCH) if hit[1])
        hit = next(hits, None)
        hits.close()
        missed += hit is None
        found = f"{hit[0]}: {hit[1][0]}" if hit is not None else f"not within {last - first}"
        print(f"| {name} | {mutant.defect} | {found} |", flush=True)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
