"""`python -m hack.lint`: see prose.py."""

import sys

from hack.lint.prose import main

sys.exit(main())
