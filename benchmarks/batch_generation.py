"""Tokens a second of `herd generate`, once it is running, beside the bare engine: one machine, interleaved rounds.

    python -m benchmarks.batch_generation --prompts 512 --new-tokens 64 --slots 64 --rounds 3 --precision int8
    python -m benchmarks.batch_generation --layers 2 --prompts 64 --rounds 1    (a minute or two, for a look)

Both complete the same prompts (32 tokens each, top_k 40) with GPT-2 of random weights, one thread an
engine. The job's time runs from the replica's first step, as its own numbers say, to the commit of
the last file: start-up of Ray, Serve and the actors is told apart. CPU seconds of the replica and of the
actors say where a gap comes from. Their texts are compared, too.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.cpu_allocator import GLIBC_TUNABLES

_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school")
_PROMPT_TOKENS = 32
_POLL_SECONDS = 0.5


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--prompts-per-shard", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "int8"])
    parser.add_argument("--layers", type=int, help="make the model smaller")
    arguments = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != GLIBC_TUNABLES:  # read when a process starts; the replicas have it, too
        os.environ["GLIBC_TUNABLES"] = GLIBC_TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.batch_generation", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Run the bare engine and the job in turn and print their rates and the ratio of medians."""
    from cluster.session import connect
    from gpt_core.settings import ClusterSettings

    _write_inputs(arguments, folder)
    engine = _engine(arguments, folder)
    rates: dict[str, list[float]] = {"bare": [], "job": []}
    with connect(ClusterSettings()) as cluster:
        for round_number in range(arguments.rounds):
            settings = _settings(arguments, folder, f"out-{round_number}")
            started = time.process_time()
            bare_texts, bare = _run_bare(engine, settings)
            bare_cpu = time.process_time() - started
            rates["bare"].append(bare)
            job_texts, job, total_seconds, seen = _run_job(settings, cluster)
            rates["job"].append(job)
            assert job_texts == bare_texts
            print(
                f"round {round_number}: bare {bare:.1f} tokens/s, job {job:.1f} tokens/s once running, "
                f"{total_seconds:.1f} s with start-up; the same texts; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            used = ", ".join(f"{name} {seconds:.1f}" for name, seconds in _cpu_since_first_step(seen).items())
            print(
                f"round {round_number}: CPU seconds: bare {bare_cpu:.1f}; while the replica computed: {used}",
                flush=True,
            )
    ratio = statistics.median(rates["job"]) / statistics.median(rates["bare"])
    print(f"job / bare engine = {ratio:.3f}")


def _write_inputs(arguments: argparse.Namespace, folder: Path) -> None:
    from gpt_core.model.gpt import GPT
    from gpt_core.model.presets import PRESETS
    from gpt_core.training import checkpoint
    from gpt_core.training.checkpoint import Description

    shape = PRESETS[arguments.preset].shape
    shape = replace(shape, n_layer=arguments.layers or shape.n_layer)
    model = GPT(shape).initialise(0)
    tokenizer = {"name": "gpt2", "vocabulary_size": 50257}
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    checkpoint.write(folder / "model", Description(step=1, tokens=1, shape=shape, tokenizer=tokenizer), weights, {})
    words = random.Random(0)
    sampling = {"stop_at_end_of_text": False}
    with (folder / "prompts.jsonl").open("w") as file:
        for _ in range(arguments.prompts):
            text = " ".join(words.choices(_WORDS, k=_PROMPT_TOKENS))
            file.write(json.dumps({"prompt": text, "sampling": sampling}) + "\n")


def _settings(arguments: argparse.Namespace, folder: Path, output: str) -> Any:
    from gpt_core.settings import EngineSettings, GenerateSettings, SamplingSettings

    return GenerateSettings(
        checkpoint=str(folder / "model"),
        prompts=(str(folder / "prompts.jsonl"),),
        output=str(folder / output),
        prompts_per_shard=arguments.prompts_per_shard,
        sampling=SamplingSettings(max_tokens=arguments.new_tokens, top_k=40),
        engine=EngineSettings(num_slots=arguments.slots, device="cpu", precision=arguments.precision),
    )


def _engine(arguments: argparse.Namespace, folder: Path) -> Any:
    import torch

    from gpt_core.generation.engine import Engine, EngineOptions
    from gpt_core.tokens.tokenizer import load_tokenizer
    from gpt_core.training import checkpoint

    torch.set_num_threads(1)
    loaded = checkpoint.load(folder / "model")
    options = EngineOptions(slots=arguments.slots, prefill_chunks=arguments.slots, precision=arguments.precision)
    return Engine(loaded.weights, loaded.shape, load_tokenizer("gpt2"), options)


def _run_bare(engine: Any, settings: Any) -> tuple[list[str], float]:
    """Return the texts and the tokens a second of ``Engine.run``."""
    from cluster.generating import resolve, sampling_of
    from gpt_core.generation.prompts import read_range
    from gpt_core.generation.request import GenerationRequest

    scan, sampling = resolve(settings).scan, sampling_of(settings.sampling)
    prompts = [prompt for cut in scan.ranges for prompt in read_range(scan.files, cut, sampling)]
    encode = engine.tokenizer.encode_prompt
    requests = [GenerationRequest(p.id, tuple(encode(p.text).tolist()), p.sampling) for p in prompts]
    started = time.perf_counter()
    done = engine.run(requests)
    seconds = time.perf_counter() - started
    return [completion.text for completion in done], sum(len(completion.token_ids) for completion in done) / seconds


def _run_job(settings: Any, cluster: Any) -> tuple[list[str], float, float, list["_Seen"]]:
    """Return the texts, the tokens a second while the replica computed, the whole job's seconds, and what was seen."""
    from cluster import generating
    from cluster.tracking import TrackingOptions, open_run

    inputs = generating.resolve(settings)
    options = TrackingOptions(enabled=False, system_seconds=None)
    started = time.perf_counter()
    with open_run(options, name="benchmark", kind="generate", output=Path(settings.output)) as run, _watching() as seen:
        generated = generating.perform(settings, inputs, cluster, run)
    total_seconds = time.perf_counter() - started
    paths = sorted(Path(settings.output).glob("rows/*.jsonl"))
    texts = [json.loads(line)["text"] for path in paths for line in path.open()]
    last_commit = max(path.stat().st_mtime for path in paths)
    return texts, generated.num_tokens / (last_commit - _first_step(seen).when), total_seconds, seen


@contextmanager
def _watching() -> Iterator[list["_Seen"]]:
    """Look at the one replica and at the processes while the body runs."""
    seen: list[_Seen] = []
    stopped = threading.Event()
    watcher = threading.Thread(target=_watch, args=(seen, stopped))
    watcher.start()
    try:
        yield seen
    finally:
        stopped.set()
        watcher.join()


@dataclass(frozen=True, slots=True)
class _Seen:
    when: float
    steps: int
    cpu_seconds: dict[str, float]
    """Used so far by this process and those below it, by what they are."""


def _watch(seen: list[_Seen], stopped: threading.Event) -> None:
    from ray import serve

    while not stopped.wait(_POLL_SECONDS):
        try:
            (application,) = [name for name in serve.status().applications if name.startswith("herd-generate")]
            now = serve.get_app_handle(application).statistics.remote().result(timeout_s=1)
        except Exception:
            continue
        seen.append(_Seen(time.time(), now.num_steps, _cpu_seconds()))


def _cpu_seconds() -> dict[str, float]:
    import psutil

    used = {"replica": 0.0, "actors": 0.0, "the rest of Ray": 0.0, "driver": time.process_time()}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            line, times = " ".join(process.cmdline()), process.cpu_times()
            name = "replica" if "herd-generate" in line else "actors" if "ShardActor" in line else "the rest of Ray"
            used[name] += times.user + times.system
    return used


def _cpu_since_first_step(seen: list[_Seen]) -> dict[str, float]:
    first = _first_step(seen).cpu_seconds
    # The most that was seen: what an actor used is gone with it.
    return {name: max(one.cpu_seconds[name] for one in seen) - seconds for name, seconds in first.items()}


def _first_step(seen: list[_Seen]) -> _Seen:
    """Return what was seen of the replica last before its first step."""
    return max((one for one in seen if one.steps == 0), key=lambda one: one.when)


if __name__ == "__main__":
    main()
