"""Tokens a second of the engine beside other libraries: one core each, the same weights, interleaved rounds.

    python -m benchmarks.generate --requests 16 64 256 --rounds 3 ours:bf16 ours:int8 huggingface:bf16
    python -m benchmarks.generate ours:int8 ctranslate2:int8=/path/to/its/venv/bin/python

A contestant is NAME:PRECISION, with =PYTHON where it is installed elsewhere: ours, huggingface, ctranslate2 or
vllm (benchmarks/generation_contestants.py). Each is a process of its own, and one computes at a time. Every request
is 32 random prompt tokens and 64 new ones, top_k 40; the weights are GPT-2's shape with random numbers. Prints each
round's tokens a second (and a CPU second), then the first contestant's ratio to every other by the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from cluster.cpu_allocator import GLIBC_TUNABLES

PROMPT_TOKENS = 32
_WORKER = Path(__file__).with_name("generation_contestants.py")
_DEFAULT = ("ours:auto", "ours:int8", "huggingface:auto")


class Contestant:
    """One library in its own process.

    Args:
        told: NAME:PRECISION or NAME:PRECISION=PYTHON.
        folder: Holds the model for ours (run) and for the others (hf).
        slots: Sequences computed at once, where the library asks.
    """

    def __init__(self, told: str, folder: Path, slots: int) -> None:
        self.title, _, python = told.partition("=")
        name, _, precision = self.title.partition(":")
        environment = {**os.environ, "GLIBC_TUNABLES": GLIBC_TUNABLES, "OMP_NUM_THREADS": "1"}
        root = str(_WORKER.parents[1])
        environment["PYTHONPATH"] = root if name == "ours" else ""
        command = [python or sys.executable, str(_WORKER), name, precision or "auto", str(folder), str(slots)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, cwd=folder
        )
        print(f"{self.title}: {self._read()['ready']}", flush=True)

    def run(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
        """Return the tokens a second and a CPU second over these prompts."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
        self._process.stdin.flush()
        done = self._read()
        assert done["tokens"] == len(prompts) * new_tokens, done
        return done["tokens"] / done["seconds"], done["tokens"] / done["cpu_seconds"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.title} ended with exit code {self._process.wait()}; its words are above")
        return json.loads(line)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", nargs="*", default=list(_DEFAULT))
    parser.add_argument("--requests", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--preset", default="gpt2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary_size = write_models(arguments.preset, folder)
        contestants = [Contestant(told, folder, arguments.slots) for told in arguments.contestants]
        for count in arguments.requests:
            _measure(arguments, contestants, count, vocabulary_size)
        for contestant in contestants:
            contestant.close()


def write_models(preset: str, folder: Path, layers: int | None = None) -> int:
    """Write a random model as our run folder and in the Hugging Face layout; return its vocabulary's size."""
    from gpt_core.exchange.huggingface import export_model
    from gpt_core.model.gpt import GPT
    from gpt_core.model.presets import PRESETS
    from gpt_core.training import checkpoint
    from gpt_core.training.checkpoint import Description

    shape = PRESETS[preset].shape
    shape = replace(shape, n_layer=layers or shape.n_layer)
    tokenizer = {"name": "gpt2", "vocabulary_size": 50257}
    weights = {name: tensor.detach() for name, tensor in GPT(shape).initialise(0).named_parameters()}
    described = Description(step=1, tokens=1, shape=shape, tokenizer=tokenizer)
    checkpoint.write(folder / "run", described, weights, {})
    export_model(checkpoint.load(folder / "run"), folder / "hf")
    return tokenizer["vocabulary_size"]


def _measure(arguments: argparse.Namespace, contestants: list[Contestant], count: int, vocabulary_size: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(count)
    prompts = torch.randint(0, vocabulary_size - 1, (count, PROMPT_TOKENS), generator=generator).tolist()
    for contestant in contestants:
        contestant.run(prompts[: min(count, arguments.slots)], 2)
    rates: dict[str, list[tuple[float, float]]] = {contestant.title: [] for contestant in contestants}
    for _ in range(arguments.rounds):
        for contestant in contestants:
            rates[contestant.title].append(contestant.run(prompts, arguments.new_tokens))
        told = (f"{title} {found[-1][0]:.0f} ({found[-1][1]:.0f})" for title, found in rates.items())
        print(f"{count} requests, tokens a second (a CPU second): {', '.join(told)}", flush=True)
    medians = {
        title: [statistics.median(column) for column in zip(*found, strict=True)] for title, found in rates.items()
    }
    first, *others = medians
    for other in others:
        wall, cpu = (ours / theirs for ours, theirs in zip(medians[first], medians[other], strict=True))
        print(f"{count} requests: {first} / {other} = {wall:.2f} ({cpu:.2f} by CPU seconds)", flush=True)


if __name__ == "__main__":
    main()
