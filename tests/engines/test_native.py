"""The native engine against transformers' generate, and batch composition."""

import pytest
import torch

from helpers.device import DEVICE
from helpers.tiny import END
from reinforce_lite.config import load_config
from reinforce_lite.engines import make_engine
from reinforce_lite.engines.hf import HFEngine
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.engines.oom_retry import OOMRetryEngine
from reinforce_lite.models.policy import Policy
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.types import Prompt, Sampling

PROMPTS = [Prompt((1, 40, 41, 42)), Prompt((1, 99)), Prompt((1, 70, 71, 72, 73, 74, 75, 76))]
VOCABULARY = 259


def test_greedy_completions_equal_generate(policy: Policy) -> None:
    """Prompts of 2 to 40 tokens, with and without a shared prefix; ids equal, log-probabilities within 1e-4."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (50,), generator=generator).tolist()
    prompts = [
        Prompt((1, *torch.randint(3, VOCABULARY, (n,), generator=generator).tolist())) for n in lengths
    ]
    greedy = Sampling(1, max_new_tokens=24, temperature=0.0)
    completions = NativeEngine(policy, max_num_seqs=16).generate(prompts, greedy, 0)
    for prompt, (completion,) in zip(prompts, completions, strict=True):
        out = policy.model.generate(
            torch.tensor([prompt.token_ids], device=DEVICE),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
        )[0]
        assert completion.token_ids == tuple(out[len(prompt.token_ids) :].tolist())
        logits = policy.model(out[None, :-1]).logits[0].double().log_softmax(-1)
        exact = logits[len(prompt.token_ids) - 1 :].gather(
            1, torch.tensor(completion.token_ids, device=DEVICE)[:, None]
        )
        assert list(completion.logprobs) == pytest.approx(exact.squeeze(1).tolist(), abs=1e-4)


@pytest.mark.parametrize("max_num_seqs", [1, 3, 5, 8, 256])
def test_batch_composition_changes_no_completion(policy: Policy, max_num_seqs: int) -> None:
    """In float32, for any number of concurrent sequences, and any other prompts and their order."""
    bias = torch.zeros(VOCABULARY).index_fill(
        0, torch.tensor([END]), 6.0
    )  # EOS comes early, so waiting sequences are admitted
    policy.model.lm_head.bias = torch.nn.Parameter(bias.to(DEVICE))
    sampling = Sampling(samples=4, max_new_tokens=20, temperature=0.9, top_p=0.95)
    prompts = [*PROMPTS, Prompt((5, 6)), Prompt((1, 40, 41, 43))]
    engine = NativeEngine(policy)
    alone = [engine.generate([p], sampling, seed=9)[0] for p in prompts]
    assert len({len(c.token_ids) for group in alone for c in group}) > 3
    together = NativeEngine(policy, max_num_seqs).generate(prompts[::-1], sampling, seed=9)[::-1]
    assert [[c.token_ids for c in g] for g in together] == [[c.token_ids for c in g] for g in alone]


def test_repeated_prompt_gets_other_completions(policy: Policy) -> None:
    sampling = Sampling(samples=3, max_new_tokens=8)
    first, second = NativeEngine(policy).generate([PROMPTS[0], PROMPTS[0]], sampling, seed=1)
    assert first != second


def test_hf_samples_from_a_model_that_native_does_not_support(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    policy.llama = None
    engine = make_engine("native", policy)
    assert isinstance(engine, OOMRetryEngine)
    assert isinstance(engine.engine, HFEngine)
    assert engine.max_num_seqs == 128
    assert "llama" in caplog.text


@pytest.mark.slow
def test_greedy_completions_of_the_embedded_model_equal_generate() -> None:
    """Against the hf engine, in float32, on the quickstart's own prompts."""
    pipeline = build_pipeline(load_config("quickstart", {"model.dtype": "float32"}))
    prompts = [pipeline.prompt_builder(p.question) for p in pipeline.problems("test", 50)]
    greedy = Sampling(1, max_new_tokens=48, temperature=0.0)
    native = NativeEngine(pipeline.policy).generate(prompts, greedy, 0)
    hf = HFEngine(pipeline.policy).generate(prompts, greedy, 0)
    assert [a.text for (a,) in native] == [b.text for (b,) in hf]
    for (a,), (b,) in zip(native, hf, strict=True):
        assert list(a.logprobs) == pytest.approx(list(b.logprobs), abs=1e-4)
