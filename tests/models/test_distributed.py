"""One process alone; tests/trainer/test_distributed.py has several."""

import pytest

from reinforce_lite.models import distributed
from reinforce_lite.models.distributed import map_shares


def test_one_process_does_everything_itself() -> None:
    assert (distributed.size(), distributed.is_main()) == (1, True)
    assert map_shares("abc", lambda positions: [10 * i for i in positions]) == [0, 10, 20]
    assert distributed.agree(lambda: 7) == 7
    with pytest.raises(ValueError, match="own"):
        distributed.exchange(lambda: int("own"))
