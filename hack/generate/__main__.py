"""`python -m hack.generate`: see files.py."""

import sys

from hack.generate.files import main

sys.exit(main())
