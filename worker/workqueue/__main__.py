"""The command `workqueue`, which is the same as `python -m workqueue`."""

import gc
import sys

gc.disable()  # until `main` has imported a command: nearly everything that an import makes stays

from workqueue.cli.main import main  # noqa: E402 - the imports are meant

if __name__ == "__main__":
    sys.exit(main())
