"""What exact sums cost: the fixed tree over ranks beside the library's all-reduce, interleaved.

Two processes on this machine, joined by gloo over loopback, sum a flat gradient by either, in turn:
that of GPT-2 124M alone, and whole training steps of the quickstart's model, these also with the
optimizer sharded over the ranks. Prints medians, and ratios of neighbours to the library's.

    python -m benchmarks.reduction [--ranks 2] [--rounds 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.distributed as dist

from gpt_core.model.presets import ModelShape
from gpt_core.training.learner import Learner
from gpt_core.training.local_ranks import run_on_ranks
from gpt_core.training.reduction import Ranks, sum_over_ranks
from gpt_core.training.schedule import Recipe
from gpt_core.training.step import Compute

GPT2 = ModelShape(12, 12, 768, 1024, 50257)
QUICKSTART = ModelShape(4, 4, 128, 128, 50257)
LIBRARY = "fast"
Seconds = dict[str, list[float]]


def measure(ranks: Ranks, rounds: int) -> dict[str, Seconds]:
    """Return the seconds of each round, by what was measured and how it summed."""
    torch.set_num_threads(1)
    return {
        f"sum of {GPT2.num_parameters / 1e6:.0f}M gradients (GPT-2 124M)": _sums(ranks, GPT2.num_parameters, rounds),
        f"sum of {QUICKSTART.num_parameters / 1e6:.1f}M gradients (quickstart)": _sums(
            ranks, QUICKSTART.num_parameters, 4 * rounds
        ),
        "whole step of the quickstart's model": _steps(ranks, 4 * rounds),
    }


def _sums(ranks: Ranks, num_elements: int, rounds: int) -> Seconds:
    buffer = torch.ones(num_elements)
    ways = {
        "exact": lambda: sum_over_ranks(buffer, ranks, "exact"),
        LIBRARY: lambda: sum_over_ranks(buffer, ranks, "fast"),
    }
    return _interleaved(ranks, rounds, ways)


def _steps(ranks: Ranks, rounds: int) -> Seconds:
    random = np.random.default_rng(ranks.rank)
    windows = random.integers(0, 50257, (1, 4, 129))

    def step_by(compute: Compute) -> Callable[[], object]:
        learner = Learner(QUICKSTART, Recipe(learning_rate=1e-3), 0, compute, ranks).initialise()
        return lambda: learner.take_step(windows, 1.0)

    ways = {
        "exact": step_by(Compute()),
        "exact and sharded": step_by(Compute(sharding="optimizer")),
        LIBRARY: step_by(Compute(reduction="fast")),
    }
    return _interleaved(ranks, rounds, ways)


def _interleaved(ranks: Ranks, rounds: int, ways: Mapping[str, Callable[[], object]]) -> Seconds:
    seconds: Seconds = {way: [] for way in ways}
    for number in range(-1, rounds):  # the first round warms up
        for way in list(ways)[:: 1 if number % 2 else -1]:
            dist.barrier(ranks.group)
            started = time.perf_counter()
            ways[way]()
            dist.barrier(ranks.group)
            if number >= 0:
                seconds[way].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for what, seconds in run_on_ranks(options.ranks, measure, options.rounds).items():
        library = statistics.median(seconds[LIBRARY])
        print(f"{what}, {options.ranks} processes: {LIBRARY} {library * 1e3:.1f} ms")
        for way in sorted(seconds.keys() - {LIBRARY}):
            ratios = [one / other for one, other in zip(seconds[way], seconds[LIBRARY], strict=True)]
            print(
                f"  {way} {statistics.median(seconds[way]) * 1e3:.1f} ms, "
                f"ratio of neighbours {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            )


if __name__ == "__main__":
    main()
