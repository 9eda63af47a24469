"""Training throughput of the exact GPT-2 on one GPU: a plain checkout, torch 2.11 or later, NumPy; nothing else.

    python -m benchmarks.gpu_train [--preset gpt2] [--sequences 32] [--accumulate 1] [--rounds 10] [--reduction fast]
                                   [--contestants ours hf-compiled] [--activation-checkpointing] [--profile]

Whole optimizer steps on random ids: bf16 with fp32 master weights, forward, backward, clip and AdamW, one
synchronisation a step. Prints the median tokens a second and the MFU, 6 N + 12 L d T FLOPs a token (PaLM convention)
over the card's dense bf16 peak. `--reduction exact` measures what one fixed order of all sums and deterministic kernels
cost, `--profile` shows in which kernels a step of each spends its time. Peers are Hugging Face's GPT2LMHeadModel under
bf16 autocast with fused AdamW, where transformers is installed; every round takes each contestant in turn.
`--device cpu --shape 2 2 32 16 100` tries the code without a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.gpu_profile import print_profile
from gpt_core.model.precision import peak_flops
from gpt_core.model.presets import PRESETS, ModelShape
from gpt_core.training.learner import Learner
from gpt_core.training.schedule import Recipe
from gpt_core.training.step import Compute

WARM_UP_STEPS = 3  # they compile
STEPS_A_TURN = 3
Step = Callable[[], object]


def main(words: list[str] | None = None) -> None:
    """Parse the command line, time the contestants in turn and print a line for each."""
    arguments = _parse(words)
    device = torch.device(arguments.device)
    shape = ModelShape(*arguments.shape) if arguments.shape else PRESETS[arguments.preset].shape
    size = (arguments.accumulate, arguments.sequences, shape.num_positions + 1)
    windows = np.random.default_rng(0).integers(0, shape.vocabulary_size, size)
    makers = {"ours": make_ours, "hf": make_huggingface}
    steps = {kind: makers[kind.split("-")[0]](kind, shape, windows, arguments) for kind in arguments.contestants}
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()
    for _ in range(arguments.rounds):
        for kind, step in steps.items():
            seconds[kind] += [_seconds(step, device) for _ in range(STEPS_A_TURN)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"{'x'.join(map(str, arguments.shape)) if arguments.shape else arguments.preset}, {name}, torch "
        f"{torch.__version__}, {arguments.accumulate} x {arguments.sequences} x {shape.num_positions} tokens a step, "
        f"reduction {arguments.reduction}"
    )
    num_tokens = size[0] * size[1] * shape.num_positions
    for kind, times in seconds.items():
        print(f"  {kind:13} {_line(num_tokens / statistics.median(times), shape, device)}")
    if device.type == "cuda":
        print(f"  peak memory of all: {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB")
    for kind, step in steps.items() if arguments.profile else ():
        print(f"a step of {kind}:")
        print_profile(step, device)


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("ours", "ours-eager", "hf", "hf-compiled")
    parser.add_argument("--preset", default="gpt2", choices=list(PRESETS))
    parser.add_argument("--shape", type=int, nargs=5, metavar=("LAYERS", "HEADS", "WIDTH", "POSITIONS", "VOCABULARY"))
    parser.add_argument("--sequences", type=int, default=32, help="sequences of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--reduction", default="fast", choices=["fast", "exact"])
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--contestants", nargs="+", default=["ours"], choices=kinds)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    return parser.parse_args(words)


def make_ours(kind: str, shape: ModelShape, windows: np.ndarray, arguments: argparse.Namespace) -> Step:
    """Return a step of the Learner."""
    compute = Compute(
        torch.device(arguments.device),
        torch.bfloat16,
        arguments.reduction,
        compiled=kind == "ours",
        activation_checkpointing=arguments.activation_checkpointing,
    )
    learner = Learner(shape, Recipe(), 0, compute).initialise()
    return lambda: learner.take_step(windows, 1.0)


def make_huggingface(kind: str, shape: ModelShape, windows: np.ndarray, arguments: argparse.Namespace) -> Step:
    """Return a step of the usual loop around GPT2LMHeadModel with the library's own attention and loss."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocabulary_size,
        n_positions=shape.num_positions,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        use_cache=False,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    model = GPT2LMHeadModel(config).to(arguments.device)
    if arguments.activation_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if kind == "hf-compiled" else model
    ids = torch.from_numpy(windows[:, :, :-1]).to(arguments.device)

    def step() -> None:
        for micro_batch in ids:
            with torch.autocast(arguments.device, torch.bfloat16):
                loss = forward(micro_batch, labels=micro_batch).loss / len(ids)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _seconds(step: Step, device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    step()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _line(tokens_a_second: float, shape: ModelShape, device: torch.device) -> str:
    peak = peak_flops(device)
    if peak is None:
        return f"{tokens_a_second:10,.0f} tokens/s, MFU not known: no published peak of this device"
    flops = tokens_a_second * shape.flops_a_token(shape.num_positions)
    mfu = f"{flops / peak:.1%} MFU (PaLM, 6 N + 12 L d T, of {peak / 1e12:g} TFLOP/s dense bf16)"
    return f"{tokens_a_second:10,.0f} tokens/s, {flops / 1e12:.1f} TFLOP/s, {mfu}"


if __name__ == "__main__":
    main()
