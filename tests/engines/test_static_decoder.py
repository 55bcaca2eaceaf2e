"""What a CUDA graph needs of a decoding step, on a CPU."""

import copy
import logging
from typing import Any

import pytest
import torch

from helpers.fake_cuda import FakeCuda
from helpers.groups import make_groups, make_weights
from helpers.static import BatchEngine, StaticEngine, Tape, make_decoder, tensors
from reinforce_lite.config import AdapterConfig, UpdateConfig
from reinforce_lite.engines import native, static_decoder
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.engines.static_cache import BatchSize
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.types import Prompt, Sampling

PROMPTS = [Prompt((1, 40, 41, 42)), Prompt((1, 99))]
SAMPLINGS = [Sampling(2, 9, 3, 0.9, 0.95), Sampling(2, 9), Sampling(2, 9, temperature=0.0)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@torch.inference_mode()
def test_all_steps_have_the_same_operations_shapes_and_addresses(policy: Policy, sampling: Sampling) -> None:
    decoder = make_decoder(policy, sampling)
    state = [value for owner in (decoder, decoder.cache) for value in vars(owner).values()]
    lasting = {t.untyped_storage().data_ptr() for t in tensors(state)}
    lasting |= {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def address(tensor: torch.Tensor) -> int:
        return tensor.data_ptr() if tensor.untyped_storage().data_ptr() in lasting else 0

    def record() -> list[Any]:
        with Tape() as tape:
            decoder.step()
        return [
            (func, [(t.shape, t.stride(), t.dtype, address(t)) for t in tensors((args, kwargs, result))])
            for func, args, kwargs, result in tape.calls
        ]

    first = record()
    assert len(first) > 50
    assert record() == first


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_replayed_step_gives_the_same_completions(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    """Recorded once, with idle rows, and replayed in two calls with an update in between."""
    engine, expected = StaticEngine(policy, 3), BatchEngine(policy, 3)
    tapes: list[Tape] = []
    make = static_decoder.StaticDecoder.__init__

    def make_with_tape(decoder: static_decoder.StaticDecoder, *args: Any) -> None:
        make(decoder, *args)
        with Tape() as tape:
            decoder.step()
        tapes.append(tape)
        decoder.graph = tape

    monkeypatch.setattr(static_decoder.StaticDecoder, "__init__", make_with_tape)
    for seed in (0, 1):
        found = engine.generate(PROMPTS, sampling, seed)
        assert [[c.token_ids for c in g] for g in found] == [
            [c.token_ids for c in g] for g in expected.generate(PROMPTS, sampling, seed)
        ]
        updater = Updater(policy, UpdateConfig(learning_rate=0.1), 0.7, 0)
        updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
    assert len(tapes) == 1


@torch.inference_mode()
def test_idle_and_flagged_rows_keep_their_state(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reinforce_lite.engines.sampler.CANDIDATES_ON_CARD", 1)
    decoder = make_decoder(policy, Sampling(2, 9, 0, 5.0, 0.999))  # flat: one candidate is never enough
    decoder.finish([1])
    before = [decoder.tokens.clone(), decoder.lengths.clone(), decoder.done.clone()]
    decoder.step()
    states = decoder.states.clone()
    decoder.step()
    after = [decoder.tokens, decoder.lengths, decoder.done]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert decoder.wide.tolist() == [True, False, False]
    assert torch.equal(decoder.states[0], states[0])
    assert decoder.read_new(2)[0] == (True, [], [])


def test_a_decoder_is_made_again_where_it_would_not_do(policy: Policy) -> None:
    sampling = Sampling(2, 9, 0, 0.9, 0.95)
    decoder = make_decoder(policy, sampling)
    assert decoder.serves(policy, Sampling(5, 9, 0, 0.9, 0.95, ("x",), True), BatchSize(3, 9, 1, 5))
    assert not decoder.serves(policy, Sampling(2, 9, 0, 0.8, 0.95), decoder.size)
    for size in (BatchSize(2, 9, 2, 8), BatchSize(3, 8, 2, 8), BatchSize(3, 9, 3, 8), BatchSize(3, 9, 2, 9)):
        assert not decoder.serves(policy, sampling, size)
    policy.model.lm_head.weight.data = policy.model.lm_head.weight.data.clone()
    assert not decoder.serves(policy, sampling, decoder.size)


def test_a_decoder_is_made_again_for_another_adapter(policy: Policy) -> None:
    """Even at the same addresses: its factor is part of a captured step."""
    policy.add_adapter(AdapterConfig(rank=2), seed=0)
    decoder = make_decoder(policy, SAMPLINGS[0])
    assert decoder.serves(policy, SAMPLINGS[0], decoder.size)
    policy.adapter = copy.copy(policy.adapter)
    assert not decoder.serves(policy, SAMPLINGS[0], decoder.size)


def test_a_steps_further_rounds_use_the_decoder_of_the_first(policy: Policy) -> None:
    """And sample the same as if they came first."""
    engine, sampling = StaticEngine(policy, prompts_per_step=2), Sampling(2, 9)
    engine.generate(PROMPTS, sampling, 0)
    decoder = engine._decoder
    found = engine.generate(PROMPTS[1:], sampling, 1)
    assert engine._decoder is decoder
    assert decoder is not None
    assert decoder.size.rows == 4
    assert found == StaticEngine(policy, prompts_per_step=2).generate(PROMPTS[1:], sampling, 1)


def holds_memory(engine: NativeEngine) -> bool:
    return engine._decoder is not None


def test_a_large_cache_and_one_for_which_memory_ran_out_are_freed(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = StaticEngine(policy)
    engine.generate(PROMPTS, Sampling(2, 5), 0)
    assert holds_memory(engine)
    monkeypatch.setattr(native, "KEPT_SHARE", 0.0)
    engine.generate(PROMPTS, Sampling(2, 5), 0)
    assert not holds_memory(engine)

    def run_out(decoder: Any, steps: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(native, "KEPT_SHARE", 1.0)
    monkeypatch.setattr(static_decoder.StaticDecoder, "run", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(PROMPTS, Sampling(2, 5), 0)
    assert not holds_memory(engine)


def test_a_step_that_is_not_captured_runs_eagerly(
    model_folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """On the emulated card, which has no streams: one line is logged, and the completions are right."""
    sampling = Sampling(2, 20)
    expected = NativeEngine(load_policy(str(model_folder), "float32", "cpu")).generate(PROMPTS, sampling, 0)
    with FakeCuda(), caplog.at_level(logging.WARNING):
        found = NativeEngine(load_policy(str(model_folder), "float32", "cuda")).generate(PROMPTS, sampling, 0)
    assert [[c.token_ids for c in g] for g in found] == [[c.token_ids for c in g] for g in expected]
    assert ["CUDA graph" in record.message for record in caplog.records] == [True]
