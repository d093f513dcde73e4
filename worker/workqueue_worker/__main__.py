"""`python -m workqueue_worker` is the same as `workqueue`."""

import sys

from .cli import main

sys.exit(main())
