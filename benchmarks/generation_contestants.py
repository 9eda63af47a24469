"""What benchmarks/generate.py starts: one library in one process, fed with prompts line by line.

    python generation_contestants.py NAME PRECISION FOLDER SLOTS

Reads {"prompts": [[ids]], "new_tokens": 64} from standard input and answers {"tokens", "seconds", "cpu_seconds"}.
Needs nothing but the library it runs, so it works in that library's own virtual environment.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

TOP_K = 40
Run = Callable[[list[list[int]], int], int]
"""Prompts and the number of new tokens of each, to the number of tokens made."""


def main() -> None:
    """Load the library and answer until standard input ends."""
    name, precision, folder, slots = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    makers = {"ours": ours, "huggingface": huggingface, "ctranslate2": ctranslate2, "vllm": vllm}
    run, told = makers[name](precision, folder, int(slots))
    print(json.dumps({"ready": told}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        started, started_cpu = time.perf_counter(), time.process_time()
        tokens = run(asked["prompts"], asked["new_tokens"])
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
        found = {"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}
        print(json.dumps(found), file=answers, flush=True)


def ours(precision: str, folder: str, slots: int) -> tuple[Run, str]:
    """Return a run of the engine, invariance on, and the shapes its self-check left."""
    import torch

    from gpt_core.generation.engine import Engine, EngineOptions
    from gpt_core.generation.request import GenerationRequest, Sampling
    from gpt_core.tokens.tokenizer import load_tokenizer
    from gpt_core.training import checkpoint

    torch.set_num_threads(1)
    loaded = checkpoint.load(f"{folder}/run")
    options = EngineOptions(slots=slots, prefill_chunks=slots, precision=precision)
    engine = Engine(loaded.weights, loaded.shape, load_tokenizer("gpt2"), options)

    def run(prompts: list[list[int]], new_tokens: int) -> int:
        sampling = Sampling(max_tokens=new_tokens, top_k=TOP_K, stop_at_end_of_text=False)
        requests = [GenerationRequest(str(i), tuple(ids), sampling) for i, ids in enumerate(prompts)]
        return sum(len(completion.token_ids) for completion in engine.run(requests))

    return run, str(engine.statistics().classes)


def huggingface(precision: str, folder: str, slots: int) -> tuple[Run, str]:
    """Return a run of ``GPT2LMHeadModel.generate`` over batches of ``slots``."""
    import torch
    import transformers

    from gpt_core.model.precision import choose_dtype

    torch.set_num_threads(1)
    dtype = choose_dtype("fp32" if precision == "int8" else precision, torch.device("cpu"))
    model: Any = transformers.GPT2LMHeadModel.from_pretrained(f"{folder}/hf", dtype=dtype).eval()

    def run(prompts: list[list[int]], new_tokens: int) -> int:
        made = 0
        for start in range(0, len(prompts), slots):
            ids = torch.tensor(prompts[start : start + slots])
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_k=TOP_K,
                    min_new_tokens=new_tokens,
                    max_new_tokens=new_tokens,
                    pad_token_id=50256,
                )
            made += out.numel() - ids.numel()
        return made

    return run, f"transformers {transformers.__version__}, {dtype}"


def ctranslate2(precision: str, folder: str, slots: int) -> tuple[Run, str]:
    """Return a run of CTranslate2's generator; "int8" is its int8 with fp32 activations between products."""
    import ctranslate2 as library  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    compute_type = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16"}.get(precision, precision)
    converter = library.converters.TransformersConverter(f"{folder}/hf")
    converter.convert(f"{folder}/ct2", quantization=None if compute_type == "auto" else compute_type, force=True)
    generator = library.Generator(f"{folder}/ct2", device="cpu", compute_type=compute_type, intra_threads=1)
    words = AutoTokenizer.from_pretrained(f"{folder}/hf").convert_ids_to_tokens(range(50257))

    def run(prompts: list[list[int]], new_tokens: int) -> int:
        found = generator.generate_batch(
            [[words[i] for i in ids] for ids in prompts],
            max_length=new_tokens,
            min_length=new_tokens,
            sampling_topk=TOP_K,
            include_prompt_in_result=False,
            max_batch_size=slots,
        )
        return sum(len(result.sequences_ids[0]) for result in found)

    return run, f"ctranslate2 {library.__version__}, {generator.compute_type}"


def vllm(precision: str, folder: str, slots: int) -> tuple[Run, str]:
    """Return a run of vLLM's own scheduler, in this process."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(min(os.sched_getaffinity(0))))
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm as library  # pyright: ignore[reportMissingImports]

    dtype = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16"}[precision]
    model = library.LLM(f"{folder}/hf", dtype=dtype, max_num_seqs=slots, enable_prefix_caching=False)

    def run(prompts: list[list[int]], new_tokens: int) -> int:
        sampling = library.SamplingParams(
            max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True, top_k=TOP_K, detokenize=False
        )
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        found = model.generate(asked, sampling, use_tqdm=False)
        return sum(len(result.outputs[0].token_ids) for result in found)

    return run, f"vllm {library.__version__}, {dtype}"


if __name__ == "__main__":
    main()
