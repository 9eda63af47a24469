"""From zst-jsonl to fsynced, checksummed Arrow shards, beside the raw encoders, bare processes, datatrove and HF.

    python -m benchmarks.tokenize_corpus [--megabytes 1000] [--actors 2] [--datatrove PYTHON]

The text is real source code and documentation found on this machine, recombined: each document is made of blocks
of lines from several files, and begins with a number of its own. Every contestant is a process of its own, one after
the other and all of them in each round, so that they meet the same machine. All read the same text, a part of it in
each round, but for the two that would take hours: Hugging Face's tokenizers and datatrove get the first
`--slow_slices` files of 64 MiB of the part, as the printed line says. Rates are taken over wall time, and CPU time,
which a busy machine disturbs less. PYTHON is that of an environment with datatrove, tokenizers and orjson.

    python -m benchmarks.tokenize_corpus --megabytes 1100 --datatrove PYTHON
"""

import argparse
import functools
import importlib
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import zstandard

from cluster import tokenizing
from cluster.session import connect
from gpt_core.corpus.tokenize_shard import ShardTokenizer, TokenizeOptions
from gpt_core.documents.shard_plan import ShardPlan
from gpt_core.settings import ClusterSettings, TokenizeSettings
from gpt_core.tokens.tokenizer import load_tokenizer

_SUFFIXES = {".py", ".pyi", ".h", ".hpp", ".md", ".rst", ".txt", ".js"}
_SLICE_BYTES = 64 << 20
_BLOCK_LINES = 40
_ENCODED_AT_ONCE = 256
_GPT3_TOKENS = 300e9
_SLOW = ("HF tokenizers", "datatrove")
_DATATROVE = """
import sys, json, time, resource
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
source, output, vocabulary = sys.argv[1:]
start = time.perf_counter()
LocalPipelineExecutor(pipeline=[
    JsonlReader(source, compression="zstd", glob_pattern="*.zst"),
    DocumentTokenizer(output, tokenizer_name_or_path=vocabulary, eos_token="<|endoftext|>", shuffle_documents=False),
], tasks=1, workers=1, logging_dir=output + "/logs").run()
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"wall": time.perf_counter() - start, "cpu": used.ru_utime + used.ru_stime}))
"""


def write_text(folder: Path, num_bytes: int, min_files: int = 1) -> list[Path]:
    """Write zst-jsonl files of about 64 MiB of text each, or less, until there are `num_bytes`, on all CPUs."""
    slice_bytes = min(_SLICE_BYTES, -(-num_bytes // min_files))
    slices = [min(slice_bytes, num_bytes - at) for at in range(0, num_bytes, slice_bytes)]
    files = [folder / f"part-{number:03}.jsonl.zst" for number in range(len(slices))]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(_write_slice, files, slices))
    return files


def _write_slice(path: Path, num_bytes: int) -> None:
    documents = _documents(_sources(), random.Random(path.name))
    number = written = 0
    with zstandard.open(path, "wb", zstandard.ZstdCompressor(3)) as file:
        while written < num_bytes:
            text = f"{path.stem} {number}\n{next(documents)}"  # so that no two documents are equal
            file.write(json.dumps({"text": text}).encode() + b"\n")
            number, written = number + 1, written + len(text.encode())


@functools.lru_cache(maxsize=1)
def _sources() -> list[Path]:
    roots = [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]]
    return sorted(path for root in roots for path in Path(root).rglob("*") if path.suffix in _SUFFIXES)


def _documents(sources: Sequence[Path], rng: random.Random) -> Iterator[str]:
    """Yield documents without end: a few blocks of lines, each from another file."""
    cache: list[list[str]] = []
    while True:
        if len(cache) < 400 or rng.random() < 0.02:
            cache.append(_blocks(rng.choice(sources)))
            cache = [blocks for blocks in cache if blocks][-400:]
            continue
        chosen = rng.sample(cache, rng.randint(2, 8))
        yield "\n".join(rng.choice(blocks) for blocks in chosen)


def _blocks(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return []
    return ["\n".join(lines[at : at + _BLOCK_LINES]) for at in range(0, len(lines), _BLOCK_LINES)]


def _texts(files: Sequence[str]) -> list[str]:
    texts = []
    for name in files:
        with zstandard.open(name, "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in file]
    return texts


def measure_raw(backend: str, files: Sequence[str]) -> dict[str, float]:
    """Encode texts that are in memory already."""
    texts = _texts(files)
    encode = _encoder(backend)
    encode(texts[:8])
    started, cpu = time.perf_counter(), time.process_time()
    tokens = sum(encode(texts[at : at + _ENCODED_AT_ONCE]) for at in range(0, len(texts), _ENCODED_AT_ONCE))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"bytes": _num_bytes(texts), "tokens": tokens, "wall": wall, "cpu": cpu}


def _encoder(backend: str) -> Callable[[list[str]], int]:
    """Return what encodes some texts and counts their tokens."""
    if backend == "hf":
        from gpt_core.exchange.huggingface import write_tokenizer

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        from tokenizers import ByteLevelBPETokenizer

        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(Path(folder), "gpt2", 1024)
            hugging = ByteLevelBPETokenizer.from_file(f"{folder}/vocab.json", f"{folder}/merges.txt")
        return lambda texts: sum(len(found.ids) for found in hugging.encode_batch(texts))
    tokenizer = load_tokenizer("gpt2", "tiktoken" if backend == "tiktoken" else "gigatoken")
    return lambda texts: len(tokenizer.encode_many(texts)[0])


class MeasuredTokenizer(ShardTokenizer):
    """Adds to each row the CPU seconds of the shard and the peak memory of the process."""

    def __call__(self, plan: ShardPlan) -> dict[str, Any]:
        """Return the row with "cpu" and "peak_bytes"."""
        before = time.process_time()
        row = super().__call__(plan)
        return row | {"cpu": time.process_time() - before, "peak_bytes": _peak_bytes(), "at": time.time()}


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure_bare(backend: str, num_workers: int, files: Sequence[str]) -> dict[str, float]:
    """Run the worker in plain processes, without Ray."""
    with tempfile.TemporaryDirectory(dir=Path(files[0]).parent.parent) as output:
        settings = _settings(files, output, backend, num_workers)
        inputs = tokenizing.resolve(settings)
        options = tokenizing.options_for(settings, inputs, "gpt2")
        started = time.perf_counter()
        with ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker, (options,)) as pool:
            rows = list(pool.map(_work, inputs.plans))
        return _of_rows(rows, time.perf_counter() - started)


_worker: list[MeasuredTokenizer] = []


def _start_worker(options: TokenizeOptions) -> None:
    _worker.append(MeasuredTokenizer(options))


def _work(plan: ShardPlan) -> dict[str, Any]:
    return _worker[0](plan)


def measure_herd(backend: str, num_workers: int, files: Sequence[str]) -> dict[str, float]:
    """Run the job of `herd tokenize` on a Ray that stands already; actors' start and the manifest are in the time.

    As in `measure_bare`, the driver's imports are not.
    """
    importlib.import_module("ray.data")
    tokenizing.ShardTokenizer = MeasuredTokenizer
    rows: list[dict[str, Any]] = []
    entries = tokenizing.contents_of

    def kept(settings: Any, inputs: Any, of: Any, vocabulary: str) -> Any:
        rows.extend(of())
        return entries(settings, inputs, of, vocabulary)

    tokenizing.contents_of = kept
    with (
        tempfile.TemporaryDirectory(dir=Path(files[0]).parent.parent) as output,
        connect(ClusterSettings(num_cpus=num_workers)) as cluster,
    ):
        settings = _settings(files, output, backend, num_workers)
        inputs = tokenizing.resolve(settings)
        started = time.perf_counter()
        tokenizing.perform(settings, inputs, cluster, _NoRun())  # type: ignore[arg-type]
        return _of_rows(rows, time.perf_counter() - started)


class _NoRun:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _settings(files: Sequence[str], output: str, backend: str, num_workers: int) -> TokenizeSettings:
    pool = {"min_actors": num_workers, "max_actors": num_workers}
    given = {"input": list(files), "output": output, "tokenizer": {"backend": backend}, "pool": pool}
    return TokenizeSettings.model_validate(given | {"shard_bytes": 1 << 20})  # a shard a file


def _of_rows(rows: Sequence[dict[str, Any]], wall: float) -> dict[str, float]:
    ends = sorted(row["at"] for row in rows)
    sums = {name: sum(row[name] for row in rows) for name in ("num_text_bytes", "num_tokens", "cpu")}
    # From the end of the first shard to that of the last: the rate without anybody's start-up.
    steady = (ends[-1] - ends[0]) / max(len(rows) - 1, 1) * len(rows)
    return {
        "bytes": sums["num_text_bytes"], "tokens": sums["num_tokens"], "wall": wall, "cpu": sums["cpu"],
        "steady": steady, "peak_bytes": max(row["peak_bytes"] for row in rows),
    }  # fmt: skip


def measure_datatrove(python: str, files: Sequence[str]) -> dict[str, float]:
    """Run datatrove's reader and DocumentTokenizer in its own environment, one task."""
    from transformers import AutoTokenizer

    from gpt_core.exchange.huggingface import write_tokenizer

    with tempfile.TemporaryDirectory(dir=Path(files[0]).parent.parent) as folder:
        vocabulary, source = Path(folder, "vocabulary"), Path(folder, "in")
        vocabulary.mkdir()
        source.mkdir()
        write_tokenizer(vocabulary, "gpt2", 1024)
        AutoTokenizer.from_pretrained(vocabulary).save_pretrained(vocabulary)
        for name in files:
            os.link(name, source / Path(name).name)
        words = [python, "-c", _DATATROVE, str(source), f"{folder}/out", str(vocabulary / "tokenizer.json")]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ""}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        num_tokens = sum(path.stat().st_size // 2 for path in Path(folder, "out").glob("*.ds"))
    measured = json.loads(done.stdout.splitlines()[-1])
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured["cpu"] = max(measured["cpu"], children.ru_utime + children.ru_stime)
    return {"bytes": _num_bytes(_texts(files)), "tokens": num_tokens, **measured}


def _num_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _peers(workers: int, datatrove: str | None) -> dict[str, Callable[[Sequence[str]], dict[str, float]]]:
    peers = {
        "raw tiktoken": partial(measure_raw, "tiktoken"),
        "raw gigatoken": partial(measure_raw, "gigatoken"),
        "HF tokenizers": partial(measure_raw, "hf"),
        "bare tiktoken": partial(measure_bare, "tiktoken", workers),
        "herd tiktoken": partial(measure_herd, "tiktoken", workers),
        "bare gigatoken": partial(measure_bare, "gigatoken", workers),
        "herd gigatoken": partial(measure_herd, "gigatoken", workers),
        "herd auto": partial(measure_herd, "auto", workers),
    }
    return peers | ({"datatrove": partial(measure_datatrove, datatrove)} if datatrove else {})


def _measured(name: str, files: Sequence[Path], num_files: int, options: argparse.Namespace) -> dict[str, float]:
    words = [
        "--peer",
        name,
        "--actors",
        str(options.actors),
        *(["--datatrove", options.datatrove] * bool(options.datatrove)),
    ]
    command = [sys.executable, "-m", "benchmarks.tokenize_corpus", *words, *map(str, files)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rate, cpu_rate = found["bytes"] / found["wall"] / 1e6, found["bytes"] / found["cpu"] / 1e6
    more = f", {len(files)} of {num_files} files" if name in _SLOW else ""
    more += f", steady {found['bytes'] / found['steady'] / 1e6:6.1f} MB/s" if "steady" in found else ""
    more += f", peak {found['peak_bytes'] / 1e6:.0f} MB" if "peak_bytes" in found else ""
    print(
        f"{name:15} {found['bytes'] / 1e6:7.1f} MB {found['wall']:7.1f} s {rate:7.1f} MB/s, "
        f"{cpu_rate:6.1f} MB/CPU-s, {found['tokens'] / found['cpu'] / 1e6:6.2f} Mtok/CPU-s{more}, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return found


def _ratios(total: dict[str, dict[str, float]]) -> None:
    def speed(name: str, over: str) -> float:
        return total[name]["bytes"] / total[name][over]

    def ratio(name: str, peer: str, over: str, limit: str) -> None:
        if name in total and peer in total:
            print(f"{name} / {peer} by {over}: {speed(name, over) / speed(peer, over):.2f} (asked: {limit})")

    for backend in ("tiktoken", "gigatoken"):
        for over in ("wall", "steady", "cpu"):
            ratio(f"herd {backend}", f"bare {backend}", over, ">= 0.90")
    ratio("herd tiktoken", "raw tiktoken", "cpu", ">= 0.85")
    ratio("herd gigatoken", "raw tiktoken", "cpu", ">= 5")
    ratio("herd auto", "raw tiktoken", "cpu", "no limit")
    ratio("herd auto", "datatrove", "cpu", ">= 5")
    ratio("herd gigatoken", "datatrove", "cpu", ">= 5")
    ratio("herd gigatoken", "HF tokenizers", "cpu", "no limit")
    if best := total.get("herd gigatoken"):
        print(f"300B tokens: {_GPT3_TOKENS / (best['tokens'] / best['cpu']) / 3600:,.0f} core-hours")


def main() -> None:
    """Write the text, measure every peer in each round, print rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    slow = f"64 MiB files a round for {' and '.join(_SLOW)}; all others read everything"
    parser.add_argument("--slow_slices", type=int, default=1, help=slow)
    parser.add_argument("--datatrove", help="Python of an environment that has datatrove")
    parser.add_argument("--peers", nargs="+", help="only these")
    parser.add_argument("--folder", help="where the text is kept; a temporary folder else")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    peers = _peers(options.actors, options.datatrove)
    if options.peer:
        print(json.dumps(peers[options.peer](options.files)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        text = Path(folder) / "text"
        text.mkdir()
        min_files = 2 * options.actors * options.rounds  # "steady" is between the first shard of a round and the last
        _compare(write_text(text, int(options.megabytes * 1e6), min_files), options.peers or list(peers), options)


def _compare(files: list[Path], names: list[str], options: argparse.Namespace) -> None:
    total: dict[str, dict[str, float]] = {}
    for number in range(options.rounds):
        for name in names:
            part = files[number :: options.rounds]
            if name in _SLOW:
                part = part[: options.slow_slices]
            for key, value in _measured(name, part, len(files), options).items():
                sums = total.setdefault(name, {})
                sums[key] = max(sums.get(key, 0), value) if key == "peak_bytes" else sums.get(key, 0) + value
    _ratios(total)


if __name__ == "__main__":
    main()
