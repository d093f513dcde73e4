"""`python -m workqueue_kubectl`."""

import sys

from .cli import main

sys.exit(main())
