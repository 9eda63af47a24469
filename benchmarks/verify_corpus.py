"""Speed of `herd verify` on one core, beside reading the same bytes alone: MB/s of wall and of CPU time.

    python -m benchmarks.verify_corpus [--megabytes 1000] [--rounds 3] [--folder FOLDER]

Makes a corpus of random tokens in shards of about 64 MiB, with a manifest, and verifies it on one thread. In each round
the bytes are first read alone, in the chunks in which `verify` reads them. The files are in the page cache, so that the
digests are measured and not the disk. The issue asks for 1 GB/s a core.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.shards import ShardWriter
from gpt_core.corpus.verify import CHUNK_BYTES, verify

_LIMIT = 1000.0  # MB/s
_SHARD_TOKENS = 32 << 20
_DOCUMENT_TOKENS = 1024
_TOKENIZER = TokenizerEntry("gpt2", "", 50257, 50256)


def main() -> None:
    """Make the corpus, measure in rounds, and print both rates of each and the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the corpus is made; a temporary folder else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        num_bytes = _write_corpus(Path(folder), int(options.megabytes * 1e6))
        best = 0.0
        for _ in range(options.rounds):
            _measured("read alone", num_bytes, lambda: _read(Path(folder)))
            best = max(best, _measured("verify", num_bytes, lambda: _verify(folder)))
    print(f"best: {best:,.0f} MB/s a core (limit {_LIMIT:,.0f})")


def _write_corpus(folder: Path, num_bytes: int) -> int:
    entries = list(_shards(folder, num_bytes))
    num_documents = sum(entry.stats.num_documents for entry in entries)
    manifest.write(str(folder), ManifestContents({}, "", {"random": 1.0}, _TOKENIZER, entries, [], num_documents))
    return sum(entry.stats.num_bytes for entry in entries)


def _shards(folder: Path, num_bytes: int) -> Iterator[ShardEntry]:
    random, plan, written = np.random.default_rng(1), 0, 0
    while written < num_bytes:
        path = f"train/{plan:08}.arrow"
        count = max(min(_SHARD_TOKENS, (num_bytes - written) // 2) // _DOCUMENT_TOKENS, 1)
        starts = list(range(count))
        with ShardWriter(folder / path, np.uint16) as writer:
            tokens = random.integers(0, 50257, count * _DOCUMENT_TOKENS).astype(np.uint16)
            offsets = np.arange(count + 1) * _DOCUMENT_TOKENS
            writer.append(tokens, offsets, ["random"] * count, starts, [start + 1 for start in starts])
            stats = writer.close()
        yield ShardEntry("train", "random", plan, path, stats)
        plan, written = plan + 1, written + stats.num_bytes


def _read(folder: Path) -> None:
    chunk = memoryview(bytearray(CHUNK_BYTES))
    for path in sorted(folder.glob("train/*.arrow")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(chunk):
                pass


def _verify(folder: str) -> None:
    assert verify(folder) == []


def _measured(name: str, num_bytes: int, work: Callable[[], None]) -> float:
    """Run the work, print its rates, and return that by CPU time."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.perf_counter() - started
    rate = num_bytes / cpu / 1e6
    print(f"{name:10} {num_bytes / 1e6:7.0f} MB {num_bytes / wall / 1e6:7.0f} MB/s, {rate:7.0f} MB/CPU-s", flush=True)
    return rate


if __name__ == "__main__":
    main()
