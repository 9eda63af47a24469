"""Opens the manifest of a synthetic corpus of 15 trillion tokens and finds one batch in it.

150,000 shards of 100 million tokens in 5 sources, mixed as GPT-3 was. A fresh process opens it and computes
the coordinates of the batch at step 1,000,000; time and peak memory are above those of the bare imports.

    python -m benchmarks.manifest_scale [FOLDER]
"""

import json
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import FileEntry, ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.shards import BATCH_TOKENS, ShardStats

NUM_SHARDS = 150_000
SHARD_TOKENS = 100_000_000
# Brown et al. 2020, table 2.2: share of the mixture, and tokens in billions, of each source.
SOURCES = {
    "common-crawl": (0.60, 410),
    "webtext2": (0.22, 19),
    "books1": (0.08, 12),
    "books2": (0.08, 55),
    "wikipedia": (0.03, 3),
}
LIMIT_SECONDS = 1.0
LIMIT_BYTES = 100_000_000

CHILD = """
import json, sys, time
from pathlib import Path
from gpt_core.corpus.corpus import Corpus

def peak_bytes():
    # Not ru_maxrss, which a child takes over from the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

bare_bytes, start = peak_bytes(), time.perf_counter()
corpus = Corpus(sys.argv[1])
order = corpus.order(seed=1, window_tokens=2048, sequences_per_step=1536)
opened = time.perf_counter()
cells = order.cells(1_000_000)
found = corpus.coordinates(cells, 2048)
done = time.perf_counter()
print(json.dumps({
    "tokens": corpus.num_tokens,
    "open_seconds": opened - start,
    "coordinates_seconds": done - opened,
    "total_seconds": done - start,
    "bytes_above_imports": peak_bytes() - bare_bytes,
    "rows": len(found.shards),
    "counts": [int((cells.sources == source).sum()) for source in range(5)],
}))
"""


def entries() -> Iterator[ShardEntry]:
    """Yield the shards as a tokenizing job would have reported them."""
    billions = [size for _, size in SOURCES.values()]
    ends = [NUM_SHARDS * sum(billions[: place + 1]) // sum(billions) for place in range(len(SOURCES))]
    for plan in range(NUM_SHARDS):
        source = list(SOURCES)[bisect_right(ends, plan)]
        yield ShardEntry("train", source, plan, f"train/{plan:08d}.arrow", shard_stats(plan))


def shard_stats(plan: int) -> ShardStats:
    """Return stats of a shard of 95 full batches and a last one."""
    num_batches = SHARD_TOKENS // BATCH_TOKENS + 1
    tokens = (BATCH_TOKENS,) * (num_batches - 1) + (SHARD_TOKENS % BATCH_TOKENS,)
    ends = tuple(range(2 * BATCH_TOKENS, 2 * BATCH_TOKENS * (num_batches + 1), 2 * BATCH_TOKENS))
    digests, documents = (plan,) * num_batches, (1500,) * num_batches
    return ShardStats(
        1500 * num_batches, SHARD_TOKENS, ends[-1] + 500, f"{plan:032x}", digests, ends, documents, tokens
    )


def build(folder: str) -> None:
    """Write the manifest; no shard file exists."""
    contents = ManifestContents(
        settings={},
        input_fingerprint="",
        weights={name: weight for name, (weight, _) in SOURCES.items()},
        tokenizer=TokenizerEntry("gpt2", "", 50257, 50256),
        shards=entries(),
        files=(FileEntry("common-crawl", "/", f"{index}.jsonl.zst", 10**9) for index in range(60_000)),
        num_documents_in=NUM_SHARDS * 1500 * (SHARD_TOKENS // BATCH_TOKENS + 1),
    )
    manifest.write(folder, contents)


def measure(folder: str) -> dict[str, float]:
    """Return what a fresh process that opens the corpus and finds a batch takes."""
    done = subprocess.run([sys.executable, "-c", CHILD, folder], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main(argv: list[str]) -> int:
    """Build the manifest unless the folder has it, measure five times, print, and fail over the limits."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = argv[0] if argv else temporary
        if not (Path(folder) / manifest.MANIFEST).exists():
            build(folder)
        results = [measure(folder) for _ in range(5)]
    for result in results:
        print(json.dumps(result))
    slowest = max(result["total_seconds"] for result in results)
    largest = max(result["bytes_above_imports"] for result in results)
    print(f"slowest {slowest:.3f} s (limit {LIMIT_SECONDS}), largest {largest / 1e6:.0f} MB (limit 100)")
    return int(slowest > LIMIT_SECONDS or largest > LIMIT_BYTES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
