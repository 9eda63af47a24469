"""Generated tokens a second of GPT-2 on one GPU: a plain checkout, torch 2.11 or later; no Ray.

    python -m benchmarks.gpu_generate [--sequences 256] [--new-tokens 256] [--rounds 3] [--peers generate continuous]
                                      [--profile]

The engine with invariance on, decode steps recorded as CUDA graphs, beside Hugging Face generate and its continuous
batching where transformers is installed; bf16, the same random weights, 32 prompt tokens, top_k 40, rounds interleaved.
A peer that cannot run here is named with its reason. `--profile` prints which kernels the engine spends its time in.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu_profile import print_profile
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import PRESETS, ModelShape

PROMPT_TOKENS, TOP_K = 32, 40
WARM_UP_ROUNDS = 2  # the first fills caches, whose growth forgets recorded graphs; the second records all
VOCABULARY_SIZE = 50257
Run = Callable[[list[list[int]], int], int]
"""Prompts and new tokens of each, to the number of tokens made."""


class Ids:
    """Stands for the tokenizer: no text is made of the ids."""

    vocabulary_size = VOCABULARY_SIZE
    end_of_text = VOCABULARY_SIZE - 1

    def decode_bytes(self, ids: Sequence[int]) -> bytes:  # noqa: ARG002
        """Return no text."""
        return b""


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2", choices=list(PRESETS))
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peers", nargs="*", default=["generate", "continuous"], choices=["generate", "continuous"])
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    measure(PRESETS[arguments.preset].shape, arguments)


def measure(shape: ModelShape, arguments: argparse.Namespace) -> dict[str, float]:
    """Time every contestant in turn and return the median tokens a second of each."""
    model = GPT(shape).initialise(0)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    runs = {"ours": _ours(weights, shape, arguments)}
    for peer in arguments.peers:
        try:
            runs[peer] = _peer(peer, weights, shape, arguments)
        except Exception as error:  # another library's; the others are measured
            print(f"{peer}: not measured: {type(error).__name__}: {error}")
    generator = torch.Generator().manual_seed(0)
    limit = min(shape.vocabulary_size, VOCABULARY_SIZE) - 1
    prompts = torch.randint(0, limit, (arguments.sequences, PROMPT_TOKENS), generator=generator).tolist()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(1 - WARM_UP_ROUNDS, arguments.rounds + 1):
        for name, run in runs.items():
            rate = _rate(run, prompts, arguments)
            print(f"{_round(round_number)}: {name} {rate:,.0f} tokens/s", flush=True)
            if round_number > 0:
                rates[name].append(rate)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, median in medians.items():
        ratio = medians["ours"] / median
        print(f"{_machine(arguments)}: {name} {median:,.0f} tokens/s, ours / {name} = {ratio:.2f}")
    if arguments.profile:
        print_profile(lambda: runs["ours"](prompts, arguments.new_tokens), torch.device(arguments.device))
    return medians


def _round(number: int) -> str:
    return f"round {number}" if number > 0 else "warm-up"


def _rate(run: Run, prompts: list[list[int]], arguments: argparse.Namespace) -> float:
    _synchronize(arguments)
    started = time.perf_counter()
    made = run(prompts, arguments.new_tokens)
    _synchronize(arguments)
    return made / (time.perf_counter() - started)


def _ours(weights: dict[str, torch.Tensor], shape: ModelShape, arguments: argparse.Namespace) -> Run:
    options = EngineOptions(
        slots=arguments.sequences, prefill_chunks=arguments.sequences, device=arguments.device, precision="auto"
    )
    tokenizer: Any = Ids()
    tokenizer.vocabulary_size = min(tokenizer.vocabulary_size, shape.vocabulary_size)
    engine = Engine(weights, shape, tokenizer, options)
    print(f"ours: {engine.classes}")

    def run(prompts: list[list[int]], new_tokens: int) -> int:
        sampling = Sampling(max_tokens=new_tokens, top_k=TOP_K, stop_at_end_of_text=False)
        requests = [GenerationRequest(str(i), tuple(ids), sampling) for i, ids in enumerate(prompts)]
        return sum(len(completion.token_ids) for completion in engine.run(requests))

    return run


def _peer(peer: str, weights: dict[str, torch.Tensor], shape: ModelShape, arguments: argparse.Namespace) -> Run:
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        n_positions=shape.num_positions,
        vocab_size=shape.vocabulary_size,
    )
    model: Any = GPT2LMHeadModel(config)
    is_turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {f"transformer.{name}": w.T if name.endswith(is_turned) else w for name, w in weights.items()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    model = model.to(arguments.device, dtype).eval()

    def generate(prompts: list[list[int]], new_tokens: int) -> int:
        ids = torch.tensor(prompts, device=arguments.device)
        settings = GenerationConfig(
            do_sample=True, top_k=TOP_K, min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0,
            eos_token_id=-1,
        )  # fmt: skip
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return made.numel() - ids.numel()

    def continuous(prompts: list[list[int]], new_tokens: int) -> int:
        settings = GenerationConfig(
            do_sample=True, top_k=TOP_K, max_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=0
        )
        # What it makes ready for such requests is kept for the next round, as ours is.
        made = model.generate_batch(prompts, generation_config=settings, persistent_manager=True)
        return sum(len(one.generated_tokens) for one in made.values())

    return {"generate": generate, "continuous": continuous}[peer]


def _synchronize(arguments: argparse.Namespace) -> None:
    if arguments.device == "cuda":
        torch.cuda.synchronize()


def _machine(arguments: argparse.Namespace) -> str:
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    return f"{arguments.preset} on {name}, torch {torch.__version__}, {arguments.sequences} sequences"


if __name__ == "__main__":
    main()
