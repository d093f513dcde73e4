"""Check the specifications: `python -m hack.specs [--short] [--trace] [TITLE...]`."""

from __future__ import annotations

import argparse
import sys

from hack.cluster.errors import ClusterError
from hack.specs.models import check, models


def main() -> int:
    """Run TLC on each model, which must hold, and on each variant, which must not."""
    parser = argparse.ArgumentParser(prog="python -m hack.specs", description=main.__doc__)
    parser.add_argument(
        "titles", nargs="*", metavar="TITLE", help="only models whose title contains this text"
    )
    parser.add_argument("--short", action="store_true", help="use the constants of the short form")
    parser.add_argument(
        "--trace", action="store_true", help="print what TLC prints, with the trace of a violation"
    )
    arguments = parser.parse_args()
    problems = []
    print(f"{'model':60} {'distinct states':>15} {'CPU s':>8}  result")
    for model in models(short=arguments.short):
        if arguments.titles and not any(title in model.title for title in arguments.titles):
            continue
        try:
            result = check(model, short=arguments.short or bool(model.violates))
        except ClusterError as error:
            print(error, file=sys.stderr)
            return 1
        except RuntimeError as error:
            problems.append(str(error))
            continue
        found = f"violates {result.violated}" if result.violated else "holds"
        print(f"{model.title:60} {result.states:>15,} {result.seconds:>8.1f}  {found}", flush=True)
        if arguments.trace:
            print(result.output)
        if result.problem:
            problems.append(result.problem)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
