"""`python -m reinforce_lite` is the command `reinforce-lite`."""

import sys

from reinforce_lite.cli import main

sys.exit(main())
