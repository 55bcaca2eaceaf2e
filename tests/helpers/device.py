"""Where tests put their tensors: REINFORCE_LITE_TEST_DEVICE=cuda runs those that can on a card.

These are tests/models/test_forward.py, tests/engines/test_native.py and tests/learner/test_updater.py, but for
what they compare with numbers of a CPU.
"""

import os

DEVICE = os.environ.get("REINFORCE_LITE_TEST_DEVICE", "cpu")
