"""Tokens a second of our training step beside Hugging Face's GPT2LMHeadModel: one process, interleaved rounds.

    python -m benchmarks.train_step [--model tiny quickstart gpt2] [--threads 1 2] [--rounds 5]
                                    [--contestants ours ours-compiled hf hf-bf16 hf-compiled]

A step is forward, backward, clip at norm 1 and fused AdamW on one micro-batch of random ids (zeros run faster).
Every round takes each contestant in turn. Printed are medians by the wall clock and by the processor time of the
process over its threads, which a busy machine disturbs less. `ours` computes in bf16 where the processor has matrix
units for it, else in fp32, as training does. The matrix ceiling is the processor time of the step's matrix products
alone, at the model's own sizes and in that dtype; the percentage is their share of a step's processor time.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

# Fresh large tensors otherwise page-fault at every operation; read when the process starts.
_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
)
_ALL = ("ours", "ours-compiled", "hf", "hf-bf16", "hf-compiled")
Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A model and a micro-batch."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    sequences: int
    window: int

    @property
    def num_tokens(self) -> int:
        """Tokens of a step."""
        return self.sequences * self.window


CASES = {
    "tiny": Case(4, 4, 128, 512, 12, 64),
    "quickstart": Case(4, 4, 128, 50257, 4, 128),  # a micro-batch of jobs/configs/quickstart.yaml
    "gpt2": Case(12, 12, 768, 50257, 4, 1024),
}


def main() -> None:
    """Parse the command line and measure every case with every number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["tiny", "quickstart"], choices=list(CASES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of a contestant in a round")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before: they compile, and the heap grows")
    parser.add_argument("--contestants", nargs="+", default=list(_ALL), choices=_ALL)
    arguments = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != _TUNABLES:
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:]])
    import torch

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.model:
            measure(name, arguments)


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Run the contestants in turn, round after round, and print medians and ratios."""
    import torch

    case, makers = CASES[name], {"ours": make_ours, "hf": make_huggingface}
    steps = {kind: makers[kind.split("-")[0]](case, kind) for kind in arguments.contestants}
    wall: dict[str, list[float]] = {kind: [] for kind in steps}
    processor: dict[str, list[float]] = {kind: [] for kind in steps}
    for step in steps.values():
        for _ in range(arguments.warm_up):
            step()
    for _ in range(arguments.rounds):
        for kind, step in steps.items():
            for _ in range(arguments.steps):
                start, begun = time.perf_counter(), time.process_time()
                step()
                wall[kind].append(time.perf_counter() - start)
                processor[kind].append(time.process_time() - begun)
    threads = torch.get_num_threads()
    ceiling = products_seconds(case, our_dtype())
    load = os.getloadavg()[0]
    print(f"\n{name}: {case}, {threads} thread(s), load {load:.1f}, products alone {ceiling * 1e3:.1f} ms")
    peers = [kind for kind in steps if kind.startswith("hf")]
    for kind in steps:
        seconds, busy = statistics.median(wall[kind]), statistics.median(processor[kind]) / threads
        ratio = _ratios(kind, peers, (wall, processor))
        print(
            f"  {kind:13} {case.num_tokens / seconds:8,.0f} tokens/s, {seconds * 1e3:7.1f} ms"
            f" ({busy * 1e3:.1f} ms of processor time), products {ceiling / busy:.0%}{ratio}",
            flush=True,
        )


def _ratios(kind: str, peers: list[str], clocks: tuple[dict[str, list[float]], ...]) -> str:
    """Return how many times faster than the best peer, by each clock."""
    if kind in peers or not peers:
        return ""
    found = [min(statistics.median(times[peer]) for peer in peers) / statistics.median(times[kind]) for times in clocks]
    return f", {found[0]:.2f} x the best peer ({found[1]:.2f} x by processor time)"


def our_dtype():  # noqa: ANN201 - torch is imported late
    """Return the dtype training takes on this processor."""
    import torch

    from gpt_core.precision import choose_dtype

    return choose_dtype("auto", torch.device("cpu"))


def make_ours(case: Case, kind: str) -> Step:
    """Return a step of the Learner."""
    import numpy as np

    from gpt_core.learner import Compute, Learner
    from gpt_core.presets import ModelShape
    from gpt_core.schedule import Recipe

    shape = ModelShape(case.layers, case.heads, case.width, case.window, case.vocabulary)
    learner = Learner(shape, Recipe(), 0, Compute(dtype=our_dtype(), compiled=kind == "ours-compiled")).initialise()
    size = (1, case.sequences, case.window + 1)
    windows = np.random.default_rng(0).integers(0, case.vocabulary, size)
    return lambda: learner.take_step(windows, 1.0) and None


def make_huggingface(case: Case, kind: str) -> Step:
    """Return a step of the usual loop around GPT2LMHeadModel."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=case.vocabulary,
        n_positions=case.window,
        n_embd=case.width,
        n_layer=case.layers,
        n_head=case.heads,
        use_cache=False,
        **dropouts,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if kind == "hf-compiled" else model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, case.vocabulary, (case.sequences, case.window), generator=generator)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "hf-bf16"):
            loss = forward(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def products_seconds(case: Case, dtype) -> float:  # noqa: ANN001 - torch is imported late
    """Return the seconds of a step's matrix products alone: forward and both gradients of every linear layer."""
    rows, width = case.num_tokens, case.width
    layer = sum(_product_seconds(rows, *size, dtype) for size in _layer_sizes(width))
    # The head in blocks of rows, as its logits would not fit: seconds a row are what counts.
    block = min(rows, 512)
    head = _product_seconds(block, width, case.vocabulary, dtype) * rows / block
    return layer * case.layers + head


def _layer_sizes(width: int) -> tuple[tuple[int, int], ...]:
    return (width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)


def _product_seconds(rows: int, num_in: int, num_out: int, dtype) -> float:  # noqa: ANN001
    import torch

    x, weight = torch.randn(rows, num_in, dtype=dtype), torch.randn(num_out, num_in, dtype=dtype)
    grad = torch.randn(rows, num_out, dtype=dtype)
    times = []
    for _ in range(8):
        start = time.process_time()
        _ = x @ weight.t(), grad @ weight, grad.t() @ x
        times.append((time.process_time() - start) / torch.get_num_threads())
    return statistics.median(times)


if __name__ == "__main__":
    main()
