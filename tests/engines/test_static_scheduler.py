"""The static batch of a CUDA device, on a CPU, against the dynamic batch: the same completions."""

from itertools import chain

import pytest
import torch

from helpers.static import BatchEngine, StaticEngine
from reinforce_lite.engines import sampler, static_scheduler
from reinforce_lite.engines.sequence import append_tokens
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Completion, Prompt, Sampling

PROMPTS = [Prompt((1, 40, 41, 42)), Prompt((1, 99)), Prompt((1, 70, 71, 72, 73, 74, 75, 76)), Prompt((1, 40))]
NO_PREFIX = [Prompt((7, 8)), *PROMPTS[:2]]


def assert_equal(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    for a, b in zip(chain(*found), chain(*expected), strict=True):
        assert (a.token_ids, a.text, a.truncated) == (b.token_ids, b.text, b.truncated)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.fixture
def ending_policy(policy: Policy) -> Policy:
    """Of which some completions end early."""
    policy.eos_token_ids = frozenset(range(20))
    return policy


@pytest.mark.parametrize(
    ("prompts", "sampling", "max_num_seqs"),
    [
        pytest.param(PROMPTS, Sampling(4, 12, 3, 1.5, 0.95), 5, id="waiting, minimum length, prefix"),
        pytest.param(NO_PREFIX, Sampling(3, 9, 0, 1.0, 1.0), 256, id="whole distribution, no prefix"),
        pytest.param(PROMPTS, Sampling(3, 1, 1), 4, id="one token"),
        pytest.param(PROMPTS, Sampling(2, 12, 2, 0.0), 3, id="greedy"),
        pytest.param(PROMPTS[:1], Sampling(5, 20, stop=("Q", "z", "7", "K", "b")), 2, id="stops, one prompt"),
    ],
)
def test_completions_equal_the_dynamic_batchs(
    ending_policy: Policy, prompts: list[Prompt], sampling: Sampling, max_num_seqs: int
) -> None:
    """In float32, token by token."""
    expected = BatchEngine(ending_policy, max_num_seqs).generate(prompts, sampling, 3)
    finished: list[int] = []
    found = StaticEngine(ending_policy, max_num_seqs).generate(prompts, sampling, 3, finished.append)
    assert_equal(found, expected)
    assert sum(finished) == len(prompts) * sampling.samples


def test_rows_with_a_wide_nucleus_are_drawn_from_all_tokens(
    ending_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 4 candidates, which many a nucleus exceeds."""
    sampling = Sampling(3, 10, 2, 1.5, 0.95)
    expected = BatchEngine(ending_policy).generate(PROMPTS, sampling, 3)
    drawn: list[int] = []

    def count(policy: Policy, sequences: list[object], *rest: object) -> None:
        drawn.append(len(sequences))
        append_tokens(policy, sequences, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sampler, "CANDIDATES_ON_CARD", 4)
    monkeypatch.setattr(static_scheduler, "append_tokens", count)
    assert_equal(StaticEngine(ending_policy).generate(PROMPTS, sampling, 3), expected)
    assert sum(drawn) > 2 * len(PROMPTS) * sampling.samples  # the first tokens, and as many others


def test_repetitions_end_where_the_dynamic_batchs_do(policy: Policy) -> None:
    policy.model.lm_head.bias = torch.nn.Parameter(torch.zeros(259).index_fill(0, torch.tensor([70]), 11.0))
    sampling = Sampling(3, 110, repetition_detection=True)
    expected = BatchEngine(policy, 5).generate(PROMPTS, sampling, 3)
    assert_equal(StaticEngine(policy, 5).generate(PROMPTS, sampling, 3), expected)
    assert len({len(c.token_ids) for c in chain(*expected)}) > 2


@pytest.mark.parametrize("steps", [1, 3])
def test_completions_do_not_depend_on_when_the_host_looks(
    ending_policy: Policy, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    sampling = Sampling(3, 14, stop=("Q", "z", "7", "K"))
    expected = StaticEngine(ending_policy, 4).generate(PROMPTS, sampling, 3)
    monkeypatch.setattr(static_scheduler, "LOOK_EVERY", steps)
    assert_equal(StaticEngine(ending_policy, 4).generate(PROMPTS, sampling, 3), expected)


def test_prompts_wait_for_a_slot_and_for_the_next_prefill(
    ending_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One prompt in each prefill, and one slot."""
    sampling = Sampling(2, 8)
    expected = BatchEngine(ending_policy).generate(PROMPTS, sampling, 3)
    monkeypatch.setattr(static_scheduler, "PREFILL_TOKENS", 1)
    monkeypatch.setattr("reinforce_lite.engines.native.cache_size", lambda *_: (3, 1))
    assert_equal(StaticEngine(ending_policy).generate(PROMPTS, sampling, 3), expected)
