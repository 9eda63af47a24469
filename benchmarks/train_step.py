"""Tokens a second of our training step beside Hugging Face's GPT2LMHeadModel: one process, interleaved rounds.

    python -m benchmarks.train_step [--model tiny quickstart gpt2] [--threads 1 2] [--rounds 10] [--quick]
                                    [--precision fp32 bf16] [--contestants ours ours-compiled hf hf-bf16 hf-compiled]

A step is forward, backward, clip at norm 1 and fused AdamW on one micro-batch of random ids (zeros run faster).
Every round takes each contestant in turn, for 0.3 seconds or a step, whichever is longer. Printed are medians by the
wall clock and by the processor time of the process over its threads, which a busy machine disturbs less. `ours` takes
part once for each precision named: in what training takes on this processor (auto), in fp32, in bf16.

The ceiling is what the library's matrix products alone reach at the sizes of the model's linear layers, forward and
both gradients, in fp32 and in bf16, taken in every round; a contestant's percentage is the time of these products in
its own type over the time of its step.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

# Fresh large tensors otherwise page-fault at every operation; read when the process starts.
_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
)
_ALL = ("ours", "ours-compiled", "hf", "hf-bf16", "hf-compiled")
_PRECISIONS = ("auto", "fp32", "bf16")
_TURN_SECONDS = 0.3
_HEAD_ROWS = 512  # of the head's products, whose logits would not fit whole
Step = Callable[[], object]


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

    @property
    def linear_sizes(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of a layer's linear layers."""
        width = self.width
        return (width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)

    @property
    def product_flops(self) -> float:
        """Of a step's products with weights: 2 forward and 4 backward a weight and token."""
        weights = self.layers * sum(num_in * num_out for num_in, num_out in self.linear_sizes)
        return 6.0 * self.num_tokens * (weights + self.width * self.vocabulary)


CASES = {
    "tiny": Case(4, 4, 128, 512, 12, 64),
    "quickstart": Case(4, 4, 128, 50257, 4, 128),  # a micro-batch of jobs/configs/quickstart.yaml
    "gpt2": Case(12, 12, 768, 50257, 4, 1024),
}


def main() -> None:
    """Parse the command line and measure every case with every number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["tiny", "quickstart"], choices=list(CASES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="three rounds, and one sequence a step of gpt2")
    parser.add_argument("--precision", nargs="+", default=["auto"], choices=_PRECISIONS, help="of ours")
    parser.add_argument("--contestants", nargs="+", default=list(_ALL), choices=_ALL)
    arguments = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != _TUNABLES:
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:]])
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    contestants = [one for kind in arguments.contestants for one in _in_each_precision(kind, arguments.precision)]
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.model:
            case = CASES[name]
            if arguments.quick and name == "gpt2":
                case = replace(case, sequences=1)
            measure(name, case, contestants, 3 if arguments.quick else arguments.rounds)


def _in_each_precision(kind: str, precisions: list[str]) -> list[str]:
    """Return the names of a contestant's turns: ours is measured in each precision, auto without a word."""
    if not kind.startswith("ours"):
        return [kind]
    return [kind if precision == "auto" else f"{kind}-{precision}" for precision in precisions]


@dataclass(slots=True)
class Clocks:
    """Seconds of some work, by the wall clock and by the process over its threads."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def time(self, work: Step) -> None:
        """Do the work once."""
        import torch

        start, begun = time.perf_counter(), time.process_time()
        work()
        self.wall.append(time.perf_counter() - start)
        self.processor.append((time.process_time() - begun) / torch.get_num_threads())

    def turn(self, work: Step) -> None:
        """Do the work for a while, and once at least."""
        start = time.perf_counter()
        while True:
            self.time(work)
            if time.perf_counter() - start > _TURN_SECONDS:
                return


def measure(name: str, case: Case, contestants: list[str], rounds: int) -> None:
    """Run the contestants and the bare products in turn, round after round, and print medians and ratios."""
    import torch

    makers = {"ours": make_ours, "hf": make_huggingface}
    steps = {kind: makers[kind.split("-")[0]](case, kind) for kind in contestants}
    clocks = {kind: Clocks() for kind in steps}
    ceilings = {"fp32": Ceiling(case, torch.float32), "bf16": Ceiling(case, torch.bfloat16)}
    for step in steps.values():  # compile, and let the heap grow
        for _ in range(2):
            step()
    for _ in range(rounds):
        for kind, step in steps.items():
            clocks[kind].turn(step)
        for ceiling in ceilings.values():
            ceiling.turn()
    print(f"\n{name}: {case}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}")
    for dtype, ceiling in ceilings.items():
        seconds = ceiling.seconds
        print(
            f"  ceiling {dtype}: {case.product_flops / seconds / 1e9:.0f} GFLOP/s, {seconds * 1e3:.1f} ms of products"
        )
    for kind in steps:
        _print_contestant(case, kind, clocks, ceilings[_dtype_name(kind)].seconds)


def _print_contestant(case: Case, kind: str, clocks: dict[str, Clocks], products_seconds: float) -> None:
    seconds, busy = statistics.median(clocks[kind].wall), statistics.median(clocks[kind].processor)
    print(
        f"  {kind:18} {case.num_tokens / seconds:8,.0f} tokens/s, {seconds * 1e3:7.1f} ms"
        f" ({busy * 1e3:.1f} ms of processor time), {products_seconds / busy:.0%} of the {_dtype_name(kind)} ceiling"
        f"{_ratios(kind, clocks)}",
        flush=True,
    )


def _ratios(kind: str, clocks: dict[str, Clocks]) -> str:
    """Return how many times faster than the best peer, and than the eager one, by each clock."""
    peers = [peer for peer in clocks if peer.startswith("hf")]
    if kind in peers or not peers:
        return ""
    wall = {one: statistics.median(clocks[one].wall) for one in clocks}
    processor = {one: statistics.median(clocks[one].processor) for one in clocks}
    found = [min(times[peer] for peer in peers) / times[kind] for times in (wall, processor)]
    text = f", {found[0]:.2f} x the best peer ({found[1]:.2f} x by processor time)"
    return text + (f", {wall['hf'] / wall[kind]:.2f} x eager fp32" if "hf" in peers else "")


def _dtype_name(kind: str) -> str:
    import torch

    if kind.startswith("ours"):
        return "bf16" if our_dtype(kind) == torch.bfloat16 else "fp32"
    return "bf16" if kind == "hf-bf16" else "fp32"


def our_dtype(kind: str):  # noqa: ANN201 - torch is imported late
    """Return the dtype a contestant of ours is named after, or what training takes on this processor."""
    import torch

    from gpt_core.model.precision import choose_dtype

    precision = kind.rpartition("-")[2]
    return choose_dtype(precision if precision in _PRECISIONS else "auto", torch.device("cpu"))


def make_ours(case: Case, kind: str) -> Step:
    """Return a step of the Learner."""
    import numpy as np

    from gpt_core.model.presets import ModelShape
    from gpt_core.training.learner import Compute, Learner
    from gpt_core.training.schedule import Recipe

    shape = ModelShape(case.layers, case.heads, case.width, case.window, case.vocabulary)
    learner = Learner(shape, Recipe(), 0, Compute(dtype=our_dtype(kind), compiled="compiled" in kind)).initialise()
    size = (1, case.sequences, case.window + 1)
    windows = np.random.default_rng(0).integers(0, case.vocabulary, size)
    return lambda: learner.take_step(windows, 1.0)


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


class Ceiling:
    """The products of one layer and of some rows of the head, which make up those of a step."""

    def __init__(self, case: Case, dtype) -> None:  # noqa: ANN001 - torch is imported late
        self._case = case
        self._head_rows = min(case.num_tokens, _HEAD_ROWS)
        self._layer_products = [_products(case.num_tokens, *size, dtype) for size in case.linear_sizes]
        self._head_products = _products(self._head_rows, case.width, case.vocabulary, dtype)
        self._layer, self._head = Clocks(), Clocks()

    def turn(self) -> None:
        """Take the time three times."""
        for _ in range(3):
            self._layer.time(lambda: [products() for products in self._layer_products])
            self._head.time(self._head_products)

    @property
    def seconds(self) -> float:
        """Processor seconds of all products of a step."""
        layer, head = (statistics.median(clocks.processor) for clocks in (self._layer, self._head))
        return layer * self._case.layers + head * self._case.num_tokens / self._head_rows


def _products(rows: int, num_in: int, num_out: int, dtype) -> Step:  # noqa: ANN001
    """Return what computes a linear layer's product and both its gradients."""
    import torch

    x, weight = torch.randn(rows, num_in, dtype=dtype), torch.randn(num_out, num_in, dtype=dtype)
    grad = torch.randn(rows, num_out, dtype=dtype)
    return lambda: (x @ weight.t(), grad @ weight, grad.t() @ x)


if __name__ == "__main__":
    main()
