"""Which problems a run trains on and measures."""

from typing import Any

import pytest

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite.config import load_config
from reinforce_lite.errors import UsageError
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.types import Problem


class LongAndShort(ToyTask):
    """Every other problem is far too long."""

    def problems(self, split: str) -> list[Problem]:
        return [
            Problem(p.id, p.question + " x" * 2_000 * (i % 2 == 0), p.gold)
            for i, p in enumerate(super().problems(split))
        ]


def test_problems_are_the_first_n_that_fit(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(RECIPE, settings | {"prompt.max_tokens": 512})
    pipeline = build_pipeline(config, LongAndShort())
    assert [p.id for p in pipeline.problems("test", 3)] == ["test-1", "test-3", "test-5"]
    assert "3 of 6 problems are skipped" in caplog.text
    assert len(pipeline.problems("train")) == 6
    assert pipeline.problems("test", 1)[0].id == "test-1"  # the first one alone does not fit


def test_no_problem_that_fits_is_refused(settings: dict[str, Any]) -> None:
    config = load_config(RECIPE, settings | {"prompt.max_tokens": 20})
    with pytest.raises(UsageError, match="at most 20 tokens"):
        build_pipeline(config, ToyTask()).problems("test", 3)
