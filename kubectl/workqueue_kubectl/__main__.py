"""Run the plugin with `python -m workqueue_kubectl`."""

import sys

from workqueue_kubectl.cli import main

sys.exit(main())
