"""How long each question of ``POST /v1/inspect`` takes, in one process: the page is to answer within 300 ms.

    python -m benchmarks.inspection_time [--preset gpt2] [--tokens 64] [--rounds 9]

A model with random weights is asked each part of `gpt_core.inspection` about prompts it has not seen, and all that a
view of the page asks at once; then the same about the prompt just asked. A time is that of the answer and of its JSON,
by the clock and of the processor, which a busy machine disturbs less. Anatomy is computed once a model: what is told
is a new model's first answer.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import orjson
import torch

from gpt_core.inspection.inspection import PARTS, Inspector, Query
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import PRESETS
from gpt_core.tokens.tokenizer import load_tokenizer

_QUESTIONS = (*((part,) for part in PARTS if part != "anatomy"), ("heads", "attention"), ("step", "lens", "next"))
Taken = tuple[float, float]
"""Milliseconds by the clock, and of the processor."""


def main() -> None:
    """Ask and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape = PRESETS[given.preset].shape
    weights = {name: tensor.detach() for name, tensor in GPT(shape).initialise(0).named_parameters()}
    tokenizer = load_tokenizer("gpt2")
    draw = np.random.default_rng(0)
    prompts = [tuple(draw.integers(0, 50_000, given.tokens).tolist()) for _ in range(given.rounds)]

    def new() -> Inspector:
        return Inspector(weights, shape, tokenizer)

    new().inspect(Query(prompts[0]))  # warms the products up
    print(f"{shape.num_parameters:,} parameters, {given.tokens} tokens, {given.threads} threads, ms")
    print("| asked | by the clock | of the processor | asked again |\n|---|---|---|---|")
    for parts in _QUESTIONS:
        first, again = [], []
        for ids in prompts:
            inspector, query = new(), Query(ids, parts, layer=shape.n_layer - 1)
            first.append(_answered(inspector, query))
            again.append(_answered(inspector, query))
        _print(" + ".join(parts), first, again)
    query = Query(prompts[0], ("anatomy",))
    _print("anatomy, of a new model", [_answered(new(), query) for _ in prompts], [])


def _answered(inspector: Inspector, query: Query) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    orjson.dumps(inspector.inspect(query), option=orjson.OPT_SERIALIZE_NUMPY)
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)


def _print(name: str, first: Sequence[Taken], again: Sequence[Taken]) -> None:
    wall, cpu = (statistics.median(column) for column in zip(*first, strict=True))
    then = f"{statistics.median(taken for taken, _ in again):.0f}" if again else ""
    print(f"| {name} | {wall:.0f} | {cpu:.0f} | {then} |", flush=True)


if __name__ == "__main__":
    main()
