"""Training throughput of the exact GPT-2 on one GPU: a plain checkout, torch 2.11 or later, NumPy; nothing else.

    python -m benchmarks.gpu_train [--preset gpt2] [--sequences 32] [--accumulate 1] [--steps 30] [--reduction fast]

Whole optimizer steps on random ids: bf16 with fp32 master weights, forward, backward, clip and AdamW, one
synchronisation a step. Prints the median tokens a second and the MFU, 6 N + 12 L d T FLOPs a token (PaLM convention)
over the card's dense bf16 peak. `--reduction exact` measures what one fixed order of all sums costs.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from gpt_core.learner import Learner
from gpt_core.precision import peak_flops
from gpt_core.presets import PRESETS
from gpt_core.schedule import Recipe
from gpt_core.step import Compute

WARM_UP_STEPS = 5


def main() -> None:
    """Parse the command line, time the steps and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2", choices=list(PRESETS))
    parser.add_argument("--sequences", type=int, default=32, help="sequences of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--reduction", default="fast", choices=["fast", "exact"])
    parser.add_argument("--eager", action="store_true", help="do not compile")
    arguments = parser.parse_args()
    device = torch.device("cuda")
    shape = PRESETS[arguments.preset].shape
    compute = Compute(device, torch.bfloat16, arguments.reduction, compiled=not arguments.eager)
    learner = Learner(shape, Recipe(), 0, compute).initialise()
    size = (arguments.accumulate, arguments.sequences, shape.num_positions + 1)
    windows = np.random.default_rng(0).integers(0, shape.vocabulary_size, size)
    times = [_step_seconds(learner, windows) for _ in range(WARM_UP_STEPS + arguments.steps)]
    seconds = statistics.median(times[WARM_UP_STEPS:])
    _print(arguments, learner, arguments.accumulate * arguments.sequences * shape.num_positions / seconds)


def _step_seconds(learner: Learner, windows: np.ndarray) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    learner.take_step(windows, 1.0)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _print(arguments: argparse.Namespace, learner: Learner, tokens_a_second: float) -> None:
    device, shape = learner.compute.device, learner.shape
    peak = peak_flops(device)
    mfu = "MFU not known"
    if peak is not None:
        mfu = f"{tokens_a_second * shape.flops_a_token(shape.num_positions) / peak:.1%} MFU (PaLM)"
    memory = torch.cuda.max_memory_allocated(device) / 1e9
    print(
        f"{arguments.preset} {torch.cuda.get_device_name(device)} torch {torch.__version__} "
        f"{arguments.accumulate} x {arguments.sequences} x {shape.num_positions}, {arguments.reduction}, "
        f"{'eager' if arguments.eager else 'compiled'}: {tokens_a_second:,.0f} tokens/s, {mfu}, {memory:.1f} GB"
    )


if __name__ == "__main__":
    main()
