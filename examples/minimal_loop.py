"""The whole method in one file: problems, prompts, completions, rewards, advantages, loss, weights.

    python examples/minimal_loop.py                         # SmolLM2-135M-Instruct on one-step word problems
    python examples/minimal_loop.py --model FOLDER --steps 5 --seed 1

The package supplies what the method stands on: problems, a prompt builder, a sampler, a grader. The method
itself, REINFORCE with a leave-one-out baseline and scale, is written out below in plain PyTorch. Step by
step it does what `reinforce-lite train quickstart --model.dtype float32` does. What `train` adds: passes
over completions of several lengths without padding, bfloat16 with float32 master weights, evaluation,
checkpoints and exact resume, memory limits, reports.

Shapes: Q problems in a step, G completions of each, T tokens of the longest completion, V vocabulary.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from reinforce_lite.config import load_config
from reinforce_lite.engines import make_engine
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.rollout.selection import epoch_problems
from reinforce_lite.tasks import load_task
from reinforce_lite.types import Sampling
from reinforce_lite.utils.seeding import derive_seed

PROMPTS_PER_STEP = 8  # Q
GROUP_SIZE = 8  # G
MAX_NEW_TOKENS = 64
TEMPERATURE = 0.7
TOP_P = 0.9
STOP = ("</answer>",)
ADVANTAGE_CLIP = 2.0
LEARNING_RATE = 1e-5
WARMUP_STEPS = 3
MAX_GRAD_NORM = 1.0


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """How much better is each completion than the other G - 1 of its group? (Q, G) to (Q, G).

    A_i = clip((r_i - mean(r_others)) / (std(r_others) + 1e-8), -2, 2)

    The baseline leaves r_i itself out, so that it is independent of the completion that it judges. A lone
    success among failures is divided by almost 0: the clip is what bounds it. A group whose rewards are
    all equal carries no signal and gets exactly 0, by comparison rather than by rounding.
    """
    size = rewards.shape[1]
    others = torch.stack([rewards[:, [j for j in range(size) if j != i]] for i in range(size)], dim=1)
    scaled = (rewards - others.mean(-1)) / (others.std(-1) + 1e-8)  # others: (Q, G, G-1)
    no_signal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return scaled.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP).masked_fill(no_signal, 0.0)


def completion_logprobs(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> Tensor:
    """sum_t log pi(token_t | prompt, tokens before t) of each completion: (G,), in nats, with gradient.

    The prompt passes through the model once; its keys and values, which carry gradient too, are repeated
    for the G completions. Padding is on the right, where causal attention never looks, and its
    log-probabilities are masked out. The temperature is the sampling one; top-p applies to sampling only.
    """
    device, size = model.device, len(completions)
    tokens = pad_sequence([torch.tensor(c) for c in completions], batch_first=True).to(device)  # (G, T)
    lengths = torch.tensor([len(c) for c in completions], device=device)
    prefix = model(torch.tensor([prompt], device=device), use_cache=True, logits_to_keep=1)
    prefix.past_key_values.batch_repeat_interleave(size)
    rest = model(tokens[:, :-1], past_key_values=prefix.past_key_values) if tokens.shape[1] > 1 else None
    first = prefix.logits.expand(size, -1, -1)  # the prompt's last position predicts the first token
    logits = torch.cat([first, rest.logits], dim=1) if rest else first  # (G, T, V)
    logprobs = (logits.float() / TEMPERATURE).log_softmax(-1).gather(-1, tokens[:, :, None]).squeeze(-1)
    in_completion = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
    return (logprobs * in_completion).sum(1)


def train(model_name: str, steps: int, seed: int) -> Policy:
    """Train for `steps` steps, print a line for each, and return the policy."""
    print(f"{steps} steps on {model_name}; without a graphics card one takes a minute or more", flush=True)
    recipe = load_config("quickstart")
    policy = load_policy(model_name, dtype="float32")  # in bfloat16 an update of 1e-5 would round to nothing
    model = policy.model
    task = load_task(recipe.task)
    build_prompt = PromptBuilder(policy.tokenizer, recipe.prompt)
    engine = make_engine("native", policy)  # samples from the very weights that are trained
    score = Scorer(task)
    sampling = Sampling(GROUP_SIZE, MAX_NEW_TOKENS, 0, TEMPERATURE, TOP_P, STOP, repetition_detection=True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)

    for step in range(1, steps + 1):
        start = time.perf_counter()

        # Problems -> prompts: Q questions, each through the model's chat template to token ids.
        asked = (step - 1) * PROMPTS_PER_STEP
        problems = epoch_problems(task.problems("train"), asked, PROMPTS_PER_STEP, seed)
        prompts = [build_prompt(problem.question) for problem in problems]

        # Prompts -> completions: G of each, drawn at the same temperature.
        groups = engine.generate(prompts, sampling, derive_seed(seed, "rollout", step))

        # Completions -> rewards. The text that is judged starts with what the prompt already wrote for the
        # assistant. Here a reward is 1 if the number in the <answer> block is right, else 0.
        rewards, correct = torch.zeros(len(problems), GROUP_SIZE, dtype=torch.float64), 0
        for q, (problem, prompt, completions) in enumerate(zip(problems, prompts, groups, strict=True)):
            for i, completion in enumerate(completions):
                reward, _fault = score(problem, prompt.prefill + completion.text)
                rewards[q, i] = reward.value
                correct += reward.strict is not None and reward.strict.correct

        # Rewards -> advantages: constants of the loss; no gradient flows through them.
        advantages = leave_one_out_advantages(rewards)

        # Advantages -> loss = -sum_i A_i sum_t log pi(token_t) / (Q G max_new_tokens). The divisor is a
        # constant, not a length, so that neither short nor long completions are favored. The weights that
        # sampled are those that are trained: no ratio of two policies, nothing to clip. One group passes
        # backward at a time; gradients add up. A group without signal costs no pass.
        for prompt, completions, group_advantages in zip(prompts, groups, advantages, strict=True):
            if group_advantages.any():
                logprobs = completion_logprobs(model, prompt.token_ids, [c.token_ids for c in completions])
                loss = -(group_advantages.to(logprobs) * logprobs).sum()
                (loss / (rewards.numel() * MAX_NEW_TOKENS)).backward()

        # Loss -> weights. With no signal at all nothing moves: AdamW's momentum alone would.
        if advantages.any():
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, step / WARMUP_STEPS)
            optimizer.step()
            optimizer.zero_grad()

        tokens = sum(len(c.token_ids) for completions in groups for c in completions)
        print(
            f"step {step:3d}  reward {rewards.mean():.3f}  accuracy {correct / rewards.numel():.3f}  "
            f"tokens {tokens}  seconds {time.perf_counter() - start:.1f}",
            flush=True,
        )
    return policy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Reinforce-Lite in one file, on one-step word problems.")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder or a hub name")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.model, arguments.steps, arguments.seed)
