"""How fast this process does the parts of a training step, measured in a moment on its CPU threads."""

import time
from collections.abc import Callable

import torch

from gpt_core.model.gpt import Block, recomputed
from gpt_core.model.loss import next_token_loss
from gpt_core.model.presets import INITIAL_SIGMA
from gpt_core.training.step_parts import StepParts, layer_flops_a_token
from gpt_core.training.training_plan import TrainingPlan

TRIES = 3
MOST_FLOPS = 4e9  # of a try: 40 ms of a core that computes in fp32
MOST_HEAD_ROWS = 512
LEAST_TOKENS = 16
MOST_COPIED = 16 * 1024 * 1024  # numbers


def measure_parts(plan: TrainingPlan) -> StepParts:
    """Return the rates of a layer, of the head with its loss, and of a copy, each the best of three.

    They are those of the plan's own sizes, cut to a part of the micro-batch and of the vocabulary where that would
    take too long: well under a second in all. Leaves torch's generator as it was.
    """
    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # zeros would be faster
        return StepParts(_layer_rate(plan, dtype), _head_rate(plan, dtype), _copy_rate(plan.shape.num_parameters))


def _layer_rate(plan: TrainingPlan, dtype: torch.dtype) -> float:
    width = plan.shape.n_embd
    most_tokens = int(MOST_FLOPS / layer_flops_a_token(width, plan.window_tokens))
    window_tokens = min(plan.window_tokens, max(LEAST_TOKENS, most_tokens))
    num_sequences = min(plan.micro_batch_sequences, max(1, most_tokens // window_tokens))
    block = Block(plan.shape, 0).to(dtype)
    x_BTC = torch.randn(num_sequences, window_tokens, width).to(dtype).requires_grad_()
    grad_BTC = torch.randn_like(x_BTC)

    def step() -> None:
        out_BTC = recomputed(block, x_BTC) if plan.activation_checkpointing else block(x_BTC)
        torch.autograd.grad(out_BTC, [x_BTC, *block.parameters()], grad_BTC)

    return num_sequences * window_tokens * layer_flops_a_token(width, window_tokens) / _least_seconds(step)


def _head_rate(plan: TrainingPlan, dtype: torch.dtype) -> float:
    width = plan.shape.n_embd
    num_rows = min(plan.micro_batch_tokens, MOST_HEAD_ROWS)
    vocabulary_size = min(plan.shape.vocabulary_size, max(1, int(MOST_FLOPS / (6 * num_rows * width))))
    hidden_BTC = torch.randn(1, num_rows, width).to(dtype).requires_grad_()
    weight_VC = (INITIAL_SIGMA * torch.randn(vocabulary_size, width)).to(dtype).requires_grad_()
    targets_BT = torch.randint(vocabulary_size, (1, num_rows))

    def step() -> None:
        torch.autograd.grad(next_token_loss(hidden_BTC, weight_VC, targets_BT), (hidden_BTC, weight_VC))

    return 6 * num_rows * vocabulary_size * width / _least_seconds(step)


def _copy_rate(num_parameters: int) -> float:
    """Return the bytes read and written a second by a copy of the weights, or of a part of them."""
    source = torch.ones(min(num_parameters, MOST_COPIED))
    target = torch.ones_like(source)
    return 2 * source.nbytes / _least_seconds(lambda: target.copy_(source))


def _least_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
