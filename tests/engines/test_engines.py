"""What every engine must hold, against plain transformers and exact distributions."""

from collections import Counter
from typing import Any

import pytest
import torch

from helpers.tiny import END, make_tokenizer
from reinforce_lite.config import load_config
from reinforce_lite.engines.base import cut_at_eos
from reinforce_lite.engines.hf import HFEngine
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.engines.sampler import largest, sample_tokens
from reinforce_lite.engines.scripted import ScriptedEngine
from reinforce_lite.models.policy import Policy
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.types import Prompt, Sampling


@pytest.fixture(params=[HFEngine, NativeEngine])
def make_engine(request: pytest.FixtureRequest) -> Any:
    return request.param


PROMPTS = [Prompt((1, 40, 41, 42)), Prompt((1, 99)), Prompt((1, 70, 71, 72, 73, 74, 75, 76))]
GREEDY = Sampling(samples=1, max_new_tokens=8, temperature=0.0)


def next_logits(policy: Policy, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = policy.model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    return logits


def test_greedy_is_the_argmax_at_every_token(policy: Policy, make_engine: Any) -> None:
    """By an independent loop, one prompt at a time, without cache or padding."""
    for prompt, (completion,) in zip(
        PROMPTS, make_engine(policy).generate(PROMPTS, GREEDY, seed=0), strict=True
    ):
        ids = prompt.token_ids
        expected: list[int] = []
        while len(expected) < 8 and (not expected or expected[-1] != END):
            expected.append(int(next_logits(policy, ids + tuple(expected)).argmax()))
        assert completion.token_ids == tuple(expected)
        assert completion.truncated == (expected[-1] != END)


def test_recorded_log_probabilities_are_untempered_and_uncut(policy: Policy, make_engine: Any) -> None:
    sampling = Sampling(samples=3, max_new_tokens=6, temperature=0.5, top_p=0.8)
    for prompt, group in zip(PROMPTS, make_engine(policy).generate(PROMPTS, sampling, seed=1), strict=True):
        for c in group:
            for t, (token, logprob) in enumerate(zip(c.token_ids, c.logprobs, strict=True)):
                exact = torch.log_softmax(next_logits(policy, prompt.token_ids + c.token_ids[:t]), -1)[token]
                assert logprob == pytest.approx(exact.item(), abs=1e-4)


def test_sampling_follows_the_exact_distribution(policy: Policy, make_engine: Any) -> None:
    """Frequencies of the first token against softmax(logits / T) cut to its nucleus and renormalised.

    With 100,000 draws chance alone makes a total variation below 1%, so one of 2% would be seen.
    """
    n, temperature, top_p = 100_000, 0.5, 0.9
    sampling = Sampling(samples=n, max_new_tokens=1, temperature=temperature, top_p=top_p)
    drawn = Counter(c.token_ids[0] for c in make_engine(policy).generate(PROMPTS[:1], sampling, seed=2)[0])
    p, order = torch.softmax(next_logits(policy, PROMPTS[0].token_ids) / temperature, -1).sort(
        descending=True
    )
    kept = (p.cumsum(0) - p) < top_p  # the smallest set whose mass reaches top_p
    exact = {int(t): float(q) for t, q in zip(order[kept], p[kept] / p[kept].sum(), strict=True)}
    assert set(drawn) <= set(exact)
    distance = sum(abs(drawn[t] / n - q) for t, q in exact.items()) / 2
    assert distance < 0.012


def test_same_seed_same_answers(policy: Policy, make_engine: Any) -> None:
    sampling = Sampling(samples=4, max_new_tokens=6)
    engine = make_engine(policy)
    first = engine.generate(PROMPTS, sampling, seed=3)
    torch.rand(5)  # the global stream is neither used nor disturbed
    state = torch.get_rng_state()
    assert engine.generate(PROMPTS, sampling, seed=3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert engine.generate(PROMPTS, sampling, seed=4) != first


def test_small_batches_give_as_many_answers(policy: Policy, make_engine: Any) -> None:
    seen: list[int] = []
    found = make_engine(policy, max_num_seqs=2).generate(PROMPTS, GREEDY, 0, seen.append)
    together = make_engine(policy).generate(PROMPTS, GREEDY, 0)
    assert [c.token_ids for (c,) in found] == [c.token_ids for (c,) in together]
    assert sum(seen) == 3


def test_a_models_own_sampling_settings_do_not_count(policy: Policy, make_engine: Any) -> None:
    """Hub models come with top_k, repetition penalties and temperatures: the sampler must be the policy."""
    sampling = Sampling(samples=8, max_new_tokens=6, temperature=1.0)
    expected = make_engine(policy).generate(PROMPTS, sampling, seed=5)
    own = policy.model.generation_config
    own.top_k, own.repetition_penalty, own.no_repeat_ngram_size, own.min_p = 1, 3.0, 1, 0.5
    assert make_engine(policy).generate(PROMPTS, sampling, seed=5) == expected
    assert policy.model.generation_config is own


def test_no_end_before_min_new_tokens(policy: Policy, make_engine: Any) -> None:
    """With an end token that is nearly always the likeliest."""
    likely = torch.zeros(259).index_fill(0, torch.tensor([END]), 12.0)
    policy.model.lm_head.bias = torch.nn.Parameter(likely)
    free = make_engine(policy).generate(PROMPTS, Sampling(20, max_new_tokens=5), seed=6)
    assert any(len(c.token_ids) == 1 for group in free for c in group)
    held = Sampling(20, max_new_tokens=5, min_new_tokens=3)
    for group in make_engine(policy).generate(PROMPTS, held, seed=6):
        for c in group:
            assert len(c.token_ids) >= 4 or c.truncated
            assert END not in c.token_ids[:3]


def test_cut_at_the_first_end() -> None:
    ends = frozenset({2, 7})
    assert cut_at_eos([5, 6, 2, 2, 2], ends) == ((5, 6, 2), False)
    assert cut_at_eos([7, 2], ends) == ((7,), False)
    assert cut_at_eos([5, 6], ends) == ((5, 6), True)


def test_text_leaves_only_the_end_out(policy: Policy, make_engine: Any) -> None:
    for group in make_engine(policy).generate(PROMPTS, Sampling(30, max_new_tokens=5), seed=7):
        for c in group:
            ids = c.token_ids if c.truncated else c.token_ids[:-1]
            assert c.text == policy.tokenizer.decode(ids)
            assert c.truncated == (END not in c.token_ids)


def test_the_scripted_engine_says_what_it_is_told() -> None:
    engine = ScriptedEngine(make_tokenizer(), END, lambda prompt, sample: f"{prompt[-1]}{sample}")
    prompt = Prompt(tuple(make_tokenizer()("abc")["input_ids"]))
    ((first, second),) = engine.generate([prompt], Sampling(2, max_new_tokens=3), seed=0)
    assert (first.text, second.text) == ("c0", "c1")
    assert first.token_ids[-1] == END
    assert not first.truncated
    ((cut,),) = engine.generate([prompt], Sampling(1, max_new_tokens=2), seed=0)
    assert (cut.text, cut.truncated, len(cut.logprobs)) == ("c0", True, 2)


def test_fifty_greedy_answers_are_those_of_generate(policy: Policy) -> None:
    """Prompts of 2 to 40 tokens, beginning alike or not; text equal, log-probabilities within 1e-4."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (50,), generator=draw).tolist()
    prompts = [Prompt((1, *torch.randint(3, 259, (n,), generator=draw).tolist())) for n in lengths]
    greedy = Sampling(1, max_new_tokens=24, temperature=0.0)
    ours = NativeEngine(policy, max_num_seqs=16).generate(prompts, greedy, 0)
    for prompt, (answer,) in zip(prompts, ours, strict=True):
        out = policy.model.generate(
            torch.tensor([prompt.token_ids]), max_new_tokens=24, do_sample=False, pad_token_id=0
        )[0]
        assert answer.token_ids == tuple(out[len(prompt.token_ids) :].tolist())
        logits = policy.model(out[None, :-1]).logits[0].double().log_softmax(-1)
        exact = logits[len(prompt.token_ids) - 1 :].gather(1, torch.tensor(answer.token_ids)[:, None])
        assert list(answer.logprobs) == pytest.approx(exact.squeeze(1).tolist(), abs=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 5, 8, 256])
def test_what_else_is_in_the_batch_changes_no_answer(policy: Policy, rows: int) -> None:
    """In float32: however many fly at once, in whatever company and order, a seed gives the same answers."""
    likely = torch.zeros(259).index_fill(0, torch.tensor([END]), 6.0)  # ends come early, places are refilled
    policy.model.lm_head.bias = torch.nn.Parameter(likely)
    sampling = Sampling(samples=4, max_new_tokens=20, temperature=0.9, top_p=0.95)
    prompts = [*PROMPTS, Prompt((5, 6)), Prompt((1, 40, 41, 43))]
    engine = NativeEngine(policy)
    alone = [engine.generate([p], sampling, seed=9)[0] for p in prompts]
    assert len({len(c.token_ids) for group in alone for c in group}) > 3
    crowd = NativeEngine(policy, rows).generate(prompts[::-1], sampling, seed=9)[::-1]
    assert [[c.token_ids for c in g] for g in crowd] == [[c.token_ids for c in g] for g in alone]


def test_a_question_asked_twice_gets_two_sets_of_answers(policy: Policy) -> None:
    sampling = Sampling(samples=3, max_new_tokens=8)
    first, second = NativeEngine(policy).generate([PROMPTS[0], PROMPTS[0]], sampling, seed=1)
    assert first != second


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (2.5, 0.9), (1.0, 1.0)])
def test_draws_over_a_wide_vocabulary_are_exact(temperature: float, top_p: float) -> None:
    """Total variation between 90,000 draws and the exact nucleus; 2% more of one token would be seen.

    2,501 tokens: more than the blocks that the search for the likeliest works in, and a rest. At a
    temperature of 2.5 the nucleus is wider than that search.
    """
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2501, generator=source) * 2.5
    p = torch.softmax(logits[0].double() / temperature, 0)
    ordered, order = p.sort(descending=True)
    kept = order[(ordered.cumsum(0) - ordered) < top_p]
    exact = torch.zeros(2501, dtype=torch.float64)
    exact[kept] = p[kept] / p[kept].sum()
    assert (len(kept) > 64) == (temperature != 0.7)

    def distance(distribution: torch.Tensor, n: int = 90_000) -> float:
        """Over the 5 likeliest tokens and all others together, so that chance stays small."""
        counts = torch.zeros(2501, dtype=torch.float64)
        early = torch.zeros(3000, dtype=torch.bool)
        sampling = Sampling(1, 1, 0, temperature, top_p)
        for _ in range(n // 3000):
            uniforms = torch.rand(3000, generator=source, dtype=torch.float64)
            tokens, _logprobs = sample_tokens(logits.expand(3000, -1), sampling, uniforms, [2], early)
            counts += torch.bincount(tokens, minlength=2501)
        assert counts[exact == 0].sum() == 0
        top, rest = order[:5], order[5:]
        gap = (counts / n - distribution).abs()[top].sum() + abs(
            float(counts[rest].sum() / n - distribution[rest].sum())
        )
        return float(gap) / 2

    assert distance(exact) < 0.006
    distorted = exact * 0.98
    distorted[order[0]] += 0.02
    assert distance(distorted) > 0.01


def test_the_largest_by_hand_and_against_topk() -> None:
    rows = torch.randn(7, 2501, generator=torch.Generator().manual_seed(0))
    rows[0, -3:] = torch.tensor([9.0, 8.0, 7.0])  # in the rest behind the blocks
    rows[1, 5:2496:78] += 5  # many of them in one block
    values, places = largest(rows, 64)
    assert torch.equal(values, rows.topk(64, dim=1).values)
    assert torch.equal(rows.gather(1, places), values)
    assert places[0, :3].tolist() == [2498, 2499, 2500]
    assert largest(rows[:, :10], 64)[0].shape == (7, 10)


def test_an_end_that_is_barred_and_far_ahead_leaves_the_rest_exact() -> None:
    """At a temperature of 0.1 what is 12 nats behind it would otherwise be 0 in float32."""
    logits = torch.full((4000, 300), -30.0)
    logits[:, 2], logits[:, 7], logits[:, 9] = 12.0, 0.0, 0.0
    uniforms = torch.arange(4000, dtype=torch.float64) / 4000
    early = torch.ones(4000, dtype=torch.bool)
    tokens, logprobs = sample_tokens(logits, Sampling(1, 1, 1, 0.1, 0.9), uniforms, [2], early)
    assert Counter(tokens.tolist()) == {7: 2000, 9: 2000}
    assert logprobs.tolist() == pytest.approx([-12.0] * 4000, abs=1e-4)


def test_no_prompts_no_answers(policy: Policy, make_engine: Any) -> None:
    assert make_engine(policy).generate([], GREEDY, 0) == []


@pytest.mark.slow
def test_fifty_greedy_answers_of_the_embedded_model() -> None:
    """Against generate, in float32, on the quickstart's own prompts."""
    pipeline = build_pipeline(load_config("quickstart", {"model.dtype": "float32"}))
    prompts = [pipeline.prompter(p.question) for p in pipeline.problems("test", 50)]
    greedy = Sampling(1, max_new_tokens=48, temperature=0.0)
    ours = NativeEngine(pipeline.policy).generate(prompts, greedy, 0)
    plain = HFEngine(pipeline.policy).generate(prompts, greedy, 0)
    assert [a.text for (a,) in ours] == [b.text for (b,) in plain]
    for (a,), (b,) in zip(ours, plain, strict=True):
        assert list(a.logprobs) == pytest.approx(list(b.logprobs), abs=1e-4)
