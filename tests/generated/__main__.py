"""`python -m tests.generated`: apply generated sequences to a real API server; shrink one that fails."""

from __future__ import annotations

import argparse
import sys

from tests.generated.seeds import BATCH, run
from tests.generated.stage import stage


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.generated")
    parser.add_argument("--seed", type=int, default=0, help=f"the first seed; each makes {BATCH} sequences")
    parser.add_argument(
        "--sequences", type=int, default=BATCH, help="how many; above 20 the next seeds follow"
    )
    options = parser.parse_args()
    failed = 0
    with stage() as place:
        for number in range(options.seed, options.seed + max(options.sequences // BATCH, 1)):
            batch = run(place, number)
            print(batch, flush=True)
            failed += bool(batch.failure)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
