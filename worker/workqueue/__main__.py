"""`python -m workqueue` is the same as `workqueue`."""

import sys

from workqueue.cli.main import main

sys.exit(main())
