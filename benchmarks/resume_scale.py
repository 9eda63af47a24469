"""Resume of a tokenizing job with a million planned shards, half of them done: seconds and memory, without Ray.

    python -m benchmarks.resume_scale [--shards 1000000]

Measures what a rerun does before the first shard is given out: cut the input into plans, take their fingerprint,
open the ledger, compare the input with what was read of it, read which shards are done, and build the blocks that Ray
Data gets. One of the files was touched: the digests of its pieces are sought in the ledger (its contents, which are
not there, are not read again). The issue allows 5 s and 300 MB above the bare imports.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.shard_job import shares
from gpt_core.documents.input_changes import gather, read_times, write_times
from gpt_core.documents.shard_plan import plan_shards
from gpt_core.documents.source_files import SourceFile
from gpt_core.ledger import FOLDER, Ledger

_SHARD_BYTES = 64 << 20
_FILES = 1000


def main() -> None:
    """Write a ledger, resume from it in a fresh measurement, and print both numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000_000)
    num_shards = parser.parse_args().shards
    with tempfile.TemporaryDirectory() as folder:
        _write_half_done(folder, num_shards)
        before_bytes = _peak_bytes()
        started = time.perf_counter()
        files = [
            SourceFile("web", "/data", f"part-{number:05}.txt", _SHARD_BYTES * num_shards // _FILES, "text", None,
                       separator="\n\n", changed_ns=int(number == 7))
            for number in range(_FILES)
        ]  # fmt: skip
        plans = plan_shards(files, _SHARD_BYTES)
        ledger = Ledger(folder)
        ledger.open({"input": plans.fingerprint})
        planned_seconds = time.perf_counter() - started
        before = read_times(f"{folder}/{FOLDER}/times", len(files))
        assert before is not None
        (touched,) = np.flatnonzero(before != plans.files.changed_ns).tolist()
        gather(plans, ledger.rows_of({plans.plan_of(piece) for piece in plans.pieces_of(touched)}))
        compared_seconds = time.perf_counter() - started
        ledger.forget_tries()
        pending = np.flatnonzero(~ledger.done(len(plans)))
        read_seconds = time.perf_counter() - started
        blocks = [pa.table({"plan": share}) for share in shares(pending)]
        seconds = time.perf_counter() - started
        assert len(plans) == num_shards
        assert len(pending) == num_shards - num_shards // 2
        grown = (_peak_bytes() - before_bytes) / 1e6
        print(f"{num_shards:,} shards planned, {len(pending):,} left, in {len(blocks):,} blocks")
        print(
            f"plans {planned_seconds:.2f} s, input {compared_seconds - planned_seconds:.2f} s, "
            f"ledger {read_seconds - compared_seconds:.2f} s"
        )
        print(f"resume {seconds:.2f} s (limit 5), {grown:.0f} MB above the imports (limit 300)")


def _write_half_done(folder: str, num_shards: int) -> None:
    """Write the journal that a killed job leaves, its rows as long as those of real shards."""
    stats = {"num_documents": 20000, "num_tokens": 16_000_000, "num_bytes": 33_000_000, "xxh3_128": "f" * 32}
    stats |= {"batch_digests": [2**64 - 1] * 16, "batch_end_bytes": [33_000_000] * 16}
    stats |= {"batch_documents": [1250] * 16, "batch_tokens": [1_000_000] * 16}
    row = {"source": "web", "num_tokens": 16_000_000, "files": [{"split": "train", "stats": stats}], "warnings": []}
    row |= {"pieces": [[2**64 - 1, None]]}
    (Path(folder) / FOLDER).mkdir()
    with (Path(folder) / FOLDER / "journal").open("w") as journal:
        for index in range(0, num_shards, 2):
            journal.write(f"{index:010d} {json.dumps({'index': index, **row})}\n")
    write_times(f"{folder}/{FOLDER}/times", np.zeros(_FILES, np.int64))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
