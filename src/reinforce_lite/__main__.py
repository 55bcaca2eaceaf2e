"""`python -m reinforce_lite` is the command `reinforce-lite`."""

import sys

from reinforce_lite.cli.app import main

sys.exit(main())
