"""Time to the first token through `herd serve`, beside the bare engine: one client, requests in turn.

    python -m benchmarks.first_token --preset gpt2 --requests 50 --precision auto

Each request is a prompt of 32 tokens, streamed. The bare engine is a second copy in this process; the two answer in
turn, so that both meet the same load. The clock of the service runs from before the request is sent to its first
chunk on one kept connection. Prints the medians, the 90th percentiles, and what serving adds.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.cpu_allocator import GLIBC_TUNABLES

_PROMPT_TOKENS, _NEW_TOKENS = 32, 4


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--layers", type=int, help="make the model smaller")
    arguments = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != GLIBC_TUNABLES:  # read when a process starts; the replica has it, too
        os.environ["GLIBC_TUNABLES"] = GLIBC_TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.first_token", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Ask the engine and the service in turn and print what serving adds."""
    from benchmarks.generate import write_models
    from cluster.serving.http_guard import Access
    from cluster.serving.service import resolve, running
    from cluster.session import connect
    from gpt_core.settings import ClusterSettings, EngineSettings, ServeSettings

    write_models(arguments.preset, folder, arguments.layers)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    engine_settings = EngineSettings(device="cpu", precision=arguments.precision)
    settings = ServeSettings(checkpoint=str(folder / "run"), port=port, engine=engine_settings)
    ask_bare = _bare(folder, engine_settings)
    with connect(ClusterSettings()) as cluster, running(settings, resolve(settings), Access(None, None), cluster):
        asks = {"bare": ask_bare, "served": _served(port)}
        times: dict[str, list[float]] = {name: [] for name in asks}
        for number in range(-3, arguments.requests):
            for name, ask in asks.items():
                milliseconds = ask([(number * 97 + place * 31) % 50000 for place in range(_PROMPT_TOKENS)])
                if number >= 0:
                    times[name].append(milliseconds)
    for name, found in times.items():
        tenths = statistics.quantiles(found, n=10)
        print(f"{name}: median {statistics.median(found):.1f} ms, 90th percentile {tenths[-1]:.1f} ms")
    added = statistics.median(served - bare for bare, served in zip(times["bare"], times["served"], strict=True))
    print(f"serving adds {added:.1f} ms to the first token (median of {arguments.requests} pairs; "
          f"load {os.getloadavg()[0]:.1f})")  # fmt: skip


def _bare(folder: Path, settings: Any) -> Callable[[list[int]], float]:
    import torch

    from gpt_core.generation.engine import Engine, EngineOptions
    from gpt_core.generation.request import GenerationRequest, Sampling
    from gpt_core.tokens.tokenizer import load_tokenizer
    from gpt_core.training import checkpoint

    torch.set_num_threads(1)
    loaded = checkpoint.load(folder / "run")
    options = EngineOptions(slots=settings.num_slots, precision=settings.precision)
    engine = Engine(loaded.weights, loaded.shape, load_tokenizer("gpt2"), options)
    sampling = Sampling(max_tokens=_NEW_TOKENS, top_k=40, seed=1, stop_at_end_of_text=False)

    def ask(ids: list[int]) -> float:
        started = time.perf_counter()
        engine.submit(GenerationRequest("0", tuple(ids), sampling))
        while not engine.step():
            pass
        milliseconds = 1000 * (time.perf_counter() - started)
        while engine.busy:
            engine.step()
        return milliseconds

    return ask


def _served(port: int) -> Callable[[list[int]], float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"max_tokens": _NEW_TOKENS, "top_k": 40, "seed": 1, "stream": True}

    def ask(ids: list[int]) -> float:
        sent = json.dumps({**body, "prompt": ids}).encode()
        started = time.perf_counter()
        connection.request("POST", "/v1/completions", sent, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        first = answer.readline()
        milliseconds = 1000 * (time.perf_counter() - started)
        assert answer.status == 200, first
        answer.read()
        return milliseconds

    return ask


if __name__ == "__main__":
    main()
