"""What every engine must satisfy, against plain transformers and exact distributions."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch

from helpers.tiny import END
from reinforce_lite.engines.hf import HFEngine
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Prompt, Sampling

PROMPTS = [Prompt((1, 40, 41, 42)), Prompt((1, 99)), Prompt((1, 70, 71, 72, 73, 74, 75, 76))]
GREEDY = Sampling(samples=1, max_new_tokens=8, temperature=0.0)
VOCABULARY = 259


@pytest.fixture(params=[HFEngine, NativeEngine])
def make_engine(request: pytest.FixtureRequest) -> Any:
    return request.param


def next_logits(policy: Policy, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = policy.model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    return logits


def test_greedy_takes_the_argmax_at_every_token(policy: Policy, make_engine: Any) -> None:
    """Against an independent loop, one prompt at a time, without cache or padding."""
    for prompt, (completion,) in zip(
        PROMPTS, make_engine(policy).generate(PROMPTS, GREEDY, seed=0), strict=True
    ):
        ids = prompt.token_ids
        expected: list[int] = []
        while len(expected) < GREEDY.max_new_tokens and (not expected or expected[-1] != END):
            expected.append(int(next_logits(policy, ids + tuple(expected)).argmax()))
        assert completion.token_ids == tuple(expected)
        assert completion.truncated == (expected[-1] != END)


def test_logprobs_are_at_temperature_1_without_top_p(policy: Policy, make_engine: Any) -> None:
    sampling = Sampling(samples=3, max_new_tokens=6, temperature=0.5, top_p=0.8)
    for prompt, group in zip(PROMPTS, make_engine(policy).generate(PROMPTS, sampling, seed=1), strict=True):
        for c in group:
            for t, (token, logprob) in enumerate(zip(c.token_ids, c.logprobs, strict=True)):
                exact = torch.log_softmax(next_logits(policy, prompt.token_ids + c.token_ids[:t]), -1)[token]
                assert logprob == pytest.approx(exact.item(), abs=1e-4)


def test_sampling_follows_the_exact_distribution(policy: Policy, make_engine: Any) -> None:
    """With 100,000 draws the total variation is below 1% by chance alone, so a bias of 2% would show."""
    check_distribution(policy, make_engine, 100_000, 0.012)


def check_distribution(policy: Policy, make_engine: Any, n: int, bound: float) -> None:
    """Frequencies of the first token against softmax(logits / T) cut to its nucleus and renormalised."""
    temperature, top_p = 0.5, 0.9
    sampling = Sampling(samples=n, max_new_tokens=1, temperature=temperature, top_p=top_p)
    drawn = Counter(c.token_ids[0] for c in make_engine(policy).generate(PROMPTS[:1], sampling, seed=2)[0])
    p, order = torch.softmax(next_logits(policy, PROMPTS[0].token_ids) / temperature, -1).sort(
        descending=True
    )
    nucleus = (p.cumsum(0) - p) < top_p  # the smallest set whose mass reaches top_p
    exact = {int(t): float(q) for t, q in zip(order[nucleus], p[nucleus] / p[nucleus].sum(), strict=True)}
    assert set(drawn) <= set(exact)
    distance = sum(abs(drawn[t] / n - q) for t, q in exact.items()) / 2
    assert distance < bound


def test_seed_determines_completions(policy: Policy, make_engine: Any) -> None:
    sampling = Sampling(samples=4, max_new_tokens=6)
    engine = make_engine(policy)
    first = engine.generate(PROMPTS, sampling, seed=3)
    torch.rand(5)  # the global stream is neither read nor advanced
    state = torch.get_rng_state()
    assert engine.generate(PROMPTS, sampling, seed=3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert engine.generate(PROMPTS, sampling, seed=4) != first


def test_max_num_seqs_changes_no_greedy_completion(policy: Policy, make_engine: Any) -> None:
    progress: list[int] = []
    in_batches = make_engine(policy, max_num_seqs=2).generate(PROMPTS, GREEDY, 0, progress.append)
    together = make_engine(policy).generate(PROMPTS, GREEDY, 0)
    assert [c.token_ids for (c,) in in_batches] == [c.token_ids for (c,) in together]
    assert sum(progress) == len(PROMPTS)


def test_generation_config_of_the_model_is_ignored_and_restored(policy: Policy, make_engine: Any) -> None:
    """Hub models come with top_k, repetition penalties and temperatures: the sampler must be the policy."""
    sampling = Sampling(samples=8, max_new_tokens=6, temperature=1.0)
    expected = make_engine(policy).generate(PROMPTS, sampling, seed=5)
    config = policy.model.generation_config
    config.top_k, config.repetition_penalty, config.no_repeat_ngram_size, config.min_p = 1, 3.0, 1, 0.5
    assert make_engine(policy).generate(PROMPTS, sampling, seed=5) == expected
    assert policy.model.generation_config is config


def test_logprobs_at_another_temperature(policy: Policy, make_engine: Any) -> None:
    """What `objective.engine_correction` compares; before EOS is allowed they count it all the same."""
    sampling = Sampling(4, 6, min_new_tokens=2, temperature=0.7, recorded_temperature=0.7)
    for prompt, group in zip(PROMPTS, make_engine(policy).generate(PROMPTS, sampling, seed=1), strict=True):
        for c in group:
            for t, (token, logprob) in enumerate(zip(c.token_ids, c.logprobs, strict=True)):
                logits = next_logits(policy, prompt.token_ids + c.token_ids[:t]) / 0.7
                assert logprob == pytest.approx(torch.log_softmax(logits, -1)[token].item(), abs=1e-4)


def test_min_new_tokens_forbids_early_eos(policy: Policy, make_engine: Any) -> None:
    """With an EOS token that is nearly always the likeliest."""
    bias = torch.zeros(VOCABULARY).index_fill(0, torch.tensor([END]), 12.0)
    policy.model.lm_head.bias = torch.nn.Parameter(bias)
    unconstrained = make_engine(policy).generate(PROMPTS, Sampling(20, max_new_tokens=5), seed=6)
    assert any(len(c.token_ids) == 1 for group in unconstrained for c in group)
    constrained = Sampling(20, max_new_tokens=5, min_new_tokens=3)
    for group in make_engine(policy).generate(PROMPTS, constrained, seed=6):
        for c in group:
            assert len(c.token_ids) >= 4 or c.truncated
            assert END not in c.token_ids[:3]


def test_a_stop_ends_a_completion_in_any_batch(policy: Policy, make_engine: Any) -> None:
    """Against the same completions without stops, cut by hand at the first stop of each text."""
    prompts = [Prompt((1, 40 + i, 41 + i)) for i in range(6)]
    free = Sampling(samples=8, max_new_tokens=24)
    stops = ("Q", "z", "7", "K")  # the tiny model writes one random byte a token
    whole = make_engine(policy).generate(prompts, free, seed=8)
    stopped = make_engine(policy).generate(prompts, replace(free, stop=stops), seed=8)
    ended = 0
    for full, cut in zip(chain(*whole), chain(*stopped), strict=True):
        ends = [i for i, token in enumerate(full.token_ids) if policy.decode([token]) in stops]
        if not ends:
            continue
        ended += 1
        assert policy.decode([cut.token_ids[-1]]) in stops
        assert cut.text[-1] in stops
        assert not cut.truncated
        assert not set(cut.text[:-1]) & set(stops)
        assert len(cut.logprobs) == len(cut.token_ids)
        if make_engine is not HFEngine:  # others' draws don't depend on when others end
            assert cut.token_ids == full.token_ids[: ends[0] + 1]
            assert cut.logprobs == pytest.approx(full.logprobs[: ends[0] + 1], abs=1e-4)
    assert ended > 10


def test_a_repetition_ends_a_completion_in_any_batch(policy: Policy, make_engine: Any) -> None:
    """Against the same completions at full length, cut by hand where 64 equal tokens are seen."""
    policy.model.lm_head.bias = torch.nn.Parameter(
        torch.zeros(VOCABULARY).index_fill(0, torch.tensor([70]), 11.0)
    )
    free = Sampling(samples=6, max_new_tokens=110, min_new_tokens=110)  # no EOS token
    engine = make_engine(policy, max_num_seqs=12)
    whole = engine.generate(PROMPTS, free, seed=8)
    cut = engine.generate(PROMPTS, replace(free, repetition_detection=True), seed=8)
    lengths = []
    for full, found in zip(chain(*whole), chain(*cut), strict=True):
        ids = full.token_ids
        looks = [n for n in range(64, len(ids) + 1, 16) if len(set(ids[n - 64 : n])) == 1]
        length = looks[0] if looks else len(ids)
        assert found.token_ids == ids[:length]
        assert found.logprobs == pytest.approx(full.logprobs[:length], abs=1e-4)
        assert found.text == policy.tokenizer.decode(ids[:length])
        assert found.truncated
        assert found.repetitive or not looks
        lengths.append(length)
    assert len(set(lengths)) > 2


def test_text_omits_only_eos(policy: Policy, make_engine: Any) -> None:
    for group in make_engine(policy).generate(PROMPTS, Sampling(30, max_new_tokens=5), seed=7):
        for c in group:
            ids = c.token_ids if c.truncated else c.token_ids[:-1]
            assert c.text == policy.tokenizer.decode(ids)
            assert c.truncated == (END not in c.token_ids)


def test_no_prompts_give_no_completions(policy: Policy, make_engine: Any) -> None:
    assert make_engine(policy).generate([], GREEDY, 0) == []
