"""Sampling by vLLM (https://docs.vllm.ai) in place of a decoder of our own.

vLLM runs in this process and has a copy of the policy's weights. Before completions are sampled, what has
changed is copied into it in place, through vLLM's interface for that (`vllm_worker.py`); an adapter is
loaded as a LoRA. On a CUDA device vLLM sleeps while the policy is trained: its KV cache is
freed, and its copy of the weights too, except that the frozen base of an adapter is moved to the machine's
own memory.

Prompts and completions are token ids. Where a completion ends is decided here, token by token, by the same
`Ending` as in the other engines, so vLLM needs no tokenizer. Each completion has a seed of its own.

Of several processes (`models/distributed.py`) each has a vLLM of its own, which samples that process's share.
They start together, since vLLM makes its process groups out of the one that they have.

Every name of vLLM is in this module and in `vllm_worker.py`; `vllm_check.py` says where it can run. Omitted
on purpose: one vLLM over several GPUs, quantized weights, and models that bring their own code.
"""

import copy
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import torch

from reinforce_lite.engines import cache_size
from reinforce_lite.engines.base import OnProgress, ignore_progress
from reinforce_lite.engines.ending import Ending
from reinforce_lite.engines.kv_cache import token_kv_bytes
from reinforce_lite.engines.sequence import group_seeds
from reinforce_lite.engines.vllm_check import check_vllm
from reinforce_lite.errors import DoesNotFitError, ReinforceLiteError, UsageError
from reinforce_lite.models import distributed
from reinforce_lite.models.adapter import Adapter
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Completion, Prompt, Sampling
from reinforce_lite.utils.memory import is_out_of_memory, release_cached_memory
from reinforce_lite.utils.rng import isolated_rng
from reinforce_lite.utils.seeding import derive_seed
from reinforce_lite.utils.text import one_line_error

MIN_LENGTH = 320
"""Tokens of a prompt with its completion: those of the fixed prompts of `trainer/freshness.py` fit."""
START_SECONDS = 150.0
"""About the most that a start takes, with cold caches; watch.PATIENCE times as long counts as stuck."""
BLOCK = 128
"""Tokens of a block of the KV cache on a CPU, where it is largest."""
OWN_BYTES = {"cuda": 3 * 10**9 // 2, "cpu": 3 * 10**8}
"""About what vLLM takes besides weights and KV cache, by device type; on a GPU not yet measured."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The sizes in which vLLM allocates adapters."""
WORKER = "reinforce_lite.engines.vllm_worker"
BACKEND = "reinforce-lite"
"""The name under which vLLM knows our transfer of weights."""
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent anywhere
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are the trainer's too
}
"""Variables of vLLM, where the user has not set them."""


@dataclass(slots=True)
class _Sequence:
    """A completion being generated."""

    prompt: list[int]
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class VLLMEngine:
    """Decodes up to `max_num_seqs` sequences concurrently."""

    def __init__(
        self,
        policy: Policy,
        max_num_seqs: int = 256,
        max_length: int = 2048,
        recorded_temperature: float = 1.0,
    ) -> None:
        """`max_length` is the most tokens of a prompt with its completion; a longer one needs another start.

        With a `recorded_temperature` other than 1, only completions that are drawn at that temperature, with
        top-p 1 and no `min_new_tokens`, have their log-probabilities recorded at it.
        Raises UsageError where vLLM can't run, and DoesNotFitError where memory runs out.
        """
        check_vllm(policy.device.type)
        _check_policy(policy)
        self.policy, self.max_num_seqs = policy, max_num_seqs
        context = getattr(policy.model.config, "max_position_embeddings", None)
        self.max_length = min(max(max_length, MIN_LENGTH), context or max(max_length, MIN_LENGTH))
        self.recorded_temperature = recorded_temperature
        self._folder = tempfile.TemporaryDirectory(prefix="reinforce-lite-")
        self._sent: tuple[int, Adapter | None, int] | None = None
        """The versions of the weights that vLLM has, and the adapter."""
        self._requests = 0
        self._llm: Any = None
        self._start()

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, progress: OnProgress = ignore_progress
    ) -> list[list[Completion]]:
        """See `Engine.generate`. A completion's seed depends on the seed, its prompt and its index alone.
        The other sequences change its rounding, where vLLM's kernels depend on the batch."""
        if not prompts:
            return []
        self._make_room(max(len(p.token_ids) for p in prompts) + sampling.max_new_tokens)
        policy, groups = self.policy, _sequences(prompts, sampling, seed)
        ending = Ending(policy.eos_token_ids, policy.decode, sampling.stop, sampling.repetition_detection)
        with isolated_rng(policy.device, 0), self._awake():
            lora = self._lora() if policy.adapter else None
            self._decode([s for group in groups for s in group], sampling, ending, progress, lora)
        return [[ending.completion(s.token_ids, s.logprobs) for s in group] for group in groups]

    def sync(self) -> None:
        """Copy the weights that have changed since the last call. `generate` calls it.

        vLLM's prefix cache is emptied on every call: its keys and values come from earlier weights and from
        other batches, which round differently.
        """
        policy, adapter = self.policy, self.policy.adapter
        now = (policy.version, adapter, adapter.version if adapter else 0)
        if self._sent is None or self._sent[0] != policy.version:
            self._sent = None
            self._send(policy.model)
        if adapter and self._sent != now:
            self._load_adapter(adapter)
        self._llm.reset_prefix_cache()
        self._sent = now

    def close(self) -> None:
        """End vLLM and free its memory."""
        if self._llm is not None:
            _shut_down(self._llm.llm_engine)
            self._llm, self._sent = None, None
            release_cached_memory()

    def _start(self) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are passed by reference
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        set_num_threads = torch.set_num_threads
        try:
            if distributed.size() > 1:
                distributed.exchange(_import_vllm)  # which takes longer in some processes than in others
            with (
                distributed.watched("starting vLLM", START_SECONDS),
                isolated_rng(self.policy.device, 0),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                self._llm = _make_llm(self._settings())
                self._llm.collective_rpc("init_weight_transfer_engine", args=({},))
                # One token of a model without weights: what vLLM has no kernel for fails here.
                trial = Sampling(1, 1, temperature=0.0)
                self._decode([_Sequence([0], 0)], trial, Ending(frozenset(), self.policy.decode))
            self._sleep()
        except ReinforceLiteError:
            raise
        except Exception as error:  # vLLM's own types, and asserts
            if is_out_of_memory(error):
                raise DoesNotFitError(
                    f"starting vLLM ran out of memory ({one_line_error(error)})",
                    "lower rollout.max_num_seqs or prompt.max_tokens, or choose --rollout.engine native",
                ) from error
            raise UsageError(
                f"vLLM can't run {self.policy.name}: {one_line_error(error)}",
                "choose --rollout.engine native",
            ) from error
        finally:
            torch.set_num_threads = set_num_threads  # vLLM replaces it on a CPU

    def _settings(self) -> dict[str, Any]:
        """The arguments of vLLM's `LLM`: the policy's own shape, and no file of weights."""
        policy, config = self.policy, self.policy.model.config
        described = copy.deepcopy(config)
        described.architectures = [type(policy.model).__name__]  # a language model taken out of another's
        described.save_pretrained(self._folder.name)
        token_bytes = token_kv_bytes(config, policy.dtype.itemsize)
        gpu_memory = cache_size.read_gpu_memory(policy.device)
        cache = kv_cache_bytes(self.max_num_seqs, self.max_length, token_bytes, gpu_memory)
        settings = {
            "model": self._folder.name,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # not the model's: the sampler must be the policy
            "dtype": str(policy.dtype).removeprefix("torch."),
            "max_model_len": self.max_length,
            "max_num_seqs": self.max_num_seqs,
            "kv_cache_memory_bytes": cache,
            "enforce_eager": gpu_memory is None,
            "logprobs_mode": "raw_logprobs" if self.recorded_temperature == 1 else "processed_logprobs",
        }
        if gpu_memory is not None:
            share = (policy.saved_bytes + cache + OWN_BYTES["cuda"]) / gpu_memory
            settings |= {"enable_sleep_mode": True, "gpu_memory_utilization": min(0.95, share)}
        if distributed.size() > 1:
            settings["distributed_executor_backend"] = f"{WORKER}.OneOfSeveral"
            # No tuning: the processes would tune together, and wait for one that failed.
            settings["kernel_config"] = {"enable_flashinfer_autotune": False}
        if policy.adapter:
            rank = next(r for r in LORA_RANKS if r >= policy.adapter.config.rank)
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        return settings

    def _make_room(self, length: int) -> None:
        """Start anew if a sequence can be longer than before: an audit tries other limits."""
        if length > self.max_length or self._llm is None:
            assert distributed.size() == 1, "several processes would have to start vLLM together"
            self.close()
            self.max_length = max(length, self.max_length)
            self._start()

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """vLLM with the policy's present weights; outside of it, a GPU's memory is the trainer's."""
        is_cuda = self.policy.device.type == "cuda"
        try:
            if is_cuda:
                release_cached_memory()
                self._llm.wake_up(tags=["weights"])
            self.sync()
            if is_cuda:
                self._llm.wake_up(tags=["kv_cache"])
            yield
        finally:
            self._sleep()

    def _sleep(self) -> None:
        """A frozen base is kept in the machine's own memory; weights that will change are dropped."""
        if self.policy.device.type == "cuda":
            self._llm.sleep(level=1 if self.policy.adapter else 2)
            self._sent = self._sent if self.policy.adapter else None

    def _send(self, model: torch.nn.Module) -> None:
        call = self._llm.collective_rpc
        call("start_weight_update")
        call("update_weights", args=({"weights": model.named_parameters()},))
        call("finish_weight_update")

    def _load_adapter(self, adapter: Adapter) -> None:
        adapter.save(Path(self._folder.name), "")
        self._llm.llm_engine.add_lora(self._lora(load_inplace=True))

    def _lora(self, load_inplace: bool = False) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, self._folder.name, load_inplace=load_inplace)

    def _decode(
        self,
        sequences: list[_Sequence],
        sampling: Sampling,
        ending: Ending,
        progress: OnProgress = ignore_progress,
        lora: Any = None,
    ) -> None:
        """Sample all sequences, at most `max_num_seqs` at a time."""
        engine = self._llm.llm_engine
        eos_token_ids = sorted(self.policy.eos_token_ids)
        waiting, running = deque(sequences), dict[str, _Sequence]()
        try:
            while waiting or running:
                while waiting and len(running) < self.max_num_seqs:
                    sequence = waiting.popleft()
                    self._requests += 1
                    running[str(self._requests)] = sequence
                    params = _sampling_params(sampling, sequence.seed, eos_token_ids)
                    prompt = {"prompt_token_ids": sequence.prompt}
                    engine.add_request(str(self._requests), prompt, params, lora_request=lora)
                finished = [out.request_id for out in engine.step() if _append(running, out, ending)]
                for name in finished:
                    del running[name]
                engine.abort_request(finished)  # those that vLLM would continue
                progress(len(finished))
        finally:
            engine.abort_request(list(running))  # after an error or a signal


def _sequences(prompts: Sequence[Prompt], sampling: Sampling, seed: int) -> list[list[_Sequence]]:
    """The sequences of each prompt, still empty, with their seeds."""
    return [
        [
            _Sequence(list(prompt.token_ids), derive_seed(group_seed, "completion", i))
            for i in range(sampling.samples)
        ]
        for prompt, group_seed in zip(prompts, group_seeds(prompts, seed), strict=True)
    ]


def _append(running: dict[str, _Sequence], out: Any, ending: Ending) -> bool:
    """Append what vLLM has sampled to a sequence; whether that ends it."""
    sequence = running.get(out.request_id)
    if sequence is None:  # aborted
        return False
    (new,) = out.outputs
    start = len(sequence.token_ids)
    sequence.token_ids += new.token_ids
    sequence.logprobs += [at[token].logprob for token, at in zip(new.token_ids, new.logprobs, strict=True)]
    length = ending.length(sequence.token_ids, start)
    if length is not None:
        del sequence.token_ids[length:]
    return length is not None or bool(out.finished)


def _sampling_params(sampling: Sampling, seed: int, eos_token_ids: list[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        max_tokens=sampling.max_new_tokens,
        min_tokens=sampling.min_new_tokens,
        ignore_eos=True,  # that of the model's config; the policy may have others
        stop_token_ids=eos_token_ids,
        logprobs=0,  # of the sampled token alone
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _import_vllm() -> None:
    try:
        import vllm  # noqa: F401
    except Exception as error:
        raise UsageError(
            f"vLLM can't be imported: {one_line_error(error)}",
            "install it anew, or choose --rollout.engine native",
        ) from error


def _make_llm(settings: dict[str, Any]) -> Any:
    from vllm import LLM
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    with suppress(ValueError):  # by an earlier engine
        WeightTransferEngineFactory.register_engine(BACKEND, WORKER, "ByReference")
    return LLM(**settings, weight_transfer_config=WeightTransferConfig(backend=BACKEND))


def _shut_down(engine: Any) -> None:
    """End vLLM. Several processes keep their process group, which vLLM would destroy, also at exit."""
    if distributed.size() == 1:
        engine.engine_core.shutdown()
    else:
        engine.engine_core._finalizer.detach()
        engine.model_executor.shutdown()


def _check_policy(policy: Policy) -> None:
    """Refuse what vLLM would compute otherwise, or not at all. Raises UsageError."""
    adapter = policy.adapter
    reasons = {
        "weights in 8 bits (model.base_weights int8)": policy.is_int8,
        "a model that brings its own code": hasattr(policy.model.config, "auto_map"),
        f"an adapter of a rank above {LORA_RANKS[-1]}": adapter and adapter.config.rank > LORA_RANKS[-1],
    }
    for what, applies in reasons.items():
        if applies:
            raise UsageError(f"rollout.engine vllm does not support {what}", "choose --rollout.engine native")


def kv_cache_bytes(max_num_seqs: int, max_length: int, token_bytes: int, gpu_memory: int | None) -> int:
    """What vLLM allocates for keys and values: room for `max_num_seqs` sequences of full length, within the
    native engine's limit. Prompts are shared, so more fit; if too many run, vLLM computes some anew."""
    blocks = ceil(max_length / BLOCK) + 1  # vLLM keeps one empty
    wanted = min(max_num_seqs * blocks * BLOCK * token_bytes, int(cache_size.cache_bytes(gpu_memory)))
    return max(wanted, 2 * blocks * BLOCK * token_bytes)
