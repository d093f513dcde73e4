"""`python -m hack.image`: see build.py."""

import sys

from hack.image.build import main

sys.exit(main())
