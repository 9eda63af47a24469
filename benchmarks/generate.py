"""Tokens a second of the engine beside other libraries: one process, one thread, interleaved rounds.

    python -m benchmarks.generate --requests 16 64 --rounds 3 [--peers huggingface] [--precision auto]

Every request is 32 random prompt tokens and 64 new ones, top_k 40, on GPT-2 124M with random
weights (random data: zeros run faster). Prints one line a round and the ratio of medians.
Invariance is on: the engine's self-check decides its shapes, and the line says which.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# Fresh large tensors otherwise page-fault at every step; read when the process starts.
_TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
PROMPT_TOKENS, NEW_TOKENS = 32, 64

Run = Callable[[list[list[int]]], int]


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=["huggingface"], choices=["huggingface", "ctranslate2"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--slots", type=int, default=64)
    arguments = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != _TUNABLES:
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.generate", *sys.argv[1:]])
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Run every engine in turn, round after round, for every number of requests."""
    import torch

    torch.set_num_threads(1)
    makers = {"ours": make_ours, "huggingface": make_huggingface, "ctranslate2": make_ctranslate2}
    names = ["ours", *arguments.peers]
    engines = {name: makers[name](arguments) for name in names}
    generator = torch.Generator().manual_seed(0)
    for count in arguments.requests:
        prompts = torch.randint(0, 50000, (count, PROMPT_TOKENS), generator=generator).tolist()
        for run in engines.values():
            run(prompts[:2])
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name, run in engines.items():
                rates[name].append(_rate(run, prompts))
            print(f"{count} requests: " + ", ".join(f"{n} {r[-1]:.0f} tokens/s" for n, r in rates.items()), flush=True)
        ours = statistics.median(rates["ours"])
        for name in arguments.peers:
            print(f"{count} requests: ours / {name} = {ours / statistics.median(rates[name]):.2f}", flush=True)


def _rate(run: Run, prompts: list[list[int]]) -> float:
    start = time.perf_counter()
    num_tokens = run(prompts)
    return num_tokens / (time.perf_counter() - start)


def make_ours(arguments: argparse.Namespace) -> Run:
    """Return a run of the engine and print the shapes its self-check left."""
    from gpt_core.engine import Engine, EngineOptions
    from gpt_core.generation import GenerationRequest, Sampling
    from gpt_core.tokenizer import load_tokenizer

    model = _model()
    options = EngineOptions(slots=arguments.slots, prefill_chunks=arguments.slots, precision=arguments.precision)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    engine = Engine(weights, model.shape, load_tokenizer("gpt2"), options)
    print(f"ours: {engine.statistics().classes}")
    sampling = Sampling(max_tokens=NEW_TOKENS, top_k=40, stop_at_end_of_text=False)

    def run(prompts: list[list[int]]) -> int:
        requests = [GenerationRequest(str(i), tuple(ids), sampling) for i, ids in enumerate(prompts)]
        return sum(len(completion.token_ids) for completion in engine.run(requests))

    return run


def make_huggingface(arguments: argparse.Namespace) -> Run:
    """Return a run of ``GPT2LMHeadModel.generate`` over one batch."""
    import torch

    from gpt_core.precision import choose_dtype

    dtype = choose_dtype(arguments.precision, torch.device("cpu"))
    model = _huggingface_model().to(dtype).eval()

    def run(prompts: list[list[int]]) -> int:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=40,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=50256,
            )
        return out.numel() - ids.numel()

    return run


def make_ctranslate2(arguments: argparse.Namespace) -> Run:
    """Return a run of CTranslate2's generator with int8 weights."""
    import ctranslate2  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        _huggingface_model().save_pretrained(f"{folder}/hf")
        _write_tokenizer(f"{folder}/hf")
        ctranslate2.converters.TransformersConverter(f"{folder}/hf").convert(f"{folder}/ct2", quantization="int8")
        generator = ctranslate2.Generator(f"{folder}/ct2", device="cpu", compute_type="int8", intra_threads=1)

    def run(prompts: list[list[int]]) -> int:
        tokens = [[f"t{i}" for i in ids] for ids in prompts]
        found = generator.generate_batch(
            tokens,
            max_length=NEW_TOKENS,
            min_length=NEW_TOKENS,
            sampling_topk=40,
            include_prompt_in_result=False,
            max_batch_size=arguments.slots,
        )
        return sum(len(result.sequences_ids[0]) for result in found)

    return run


def _write_tokenizer(folder: str) -> None:
    """Write a word-level tokenizer of the words t0 t1 ..., which the converter wants to see beside a model."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(50257)}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")),
        bos_token="t50256",
        eos_token="t50256",
        unk_token="t0",
    )
    fast.save_pretrained(folder)


def _model() -> Any:
    from gpt_core.model import GPT
    from gpt_core.presets import PRESETS

    return GPT(PRESETS["gpt2"].shape).initialise(seed=0)


def _huggingface_model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


if __name__ == "__main__":
    main()
