"""Resume of a tokenizing job with a million planned shards, half of them done: seconds and memory, without Ray.

    python -m benchmarks.resume_scale [--shards 1000000]

Measures what a rerun does before the first shard is given out: cut the input into plans, take their fingerprint,
open the ledger, compare the input with what was read of it, read which shards are done, and build the blocks that Ray
Data gets. One of the files was touched: the digests of its pieces are sought in the ledger (its contents, which are
not there, are not read again). The issue allows 5 s and 300 MB above the bare imports.

Each of two shapes of input is measured in a process of its own: 1,000 files that are cut into a thousand plans each,
and a compressed file a plan. What the file system or store takes to list them is not in it. What the plans take in an
actor that gets them is printed too.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.shard_job import shares
from gpt_core.documents.file_columns import FileColumns, FileKind
from gpt_core.documents.input_changes import gather, read_times, write_times
from gpt_core.documents.shard_plan import ShardPlans, plan_shards
from gpt_core.ledger import FOLDER, Ledger

_SHARD_BYTES = 64 << 20
_FILES = 1000
_TOUCHED = 7
_SHAPES = ("1,000 cut files", "a .zst file a shard")
_ACTOR = """
import pickle, sys
from benchmarks.resume_scale import resident_bytes
before = resident_bytes("VmRSS")
with open(sys.argv[1], "rb") as file:
    plans = pickle.load(file)
plans[len(plans) // 2]
print(resident_bytes("VmRSS") - before)
"""


def main() -> None:
    """Measure a resume from a half-done ledger for each shape of input, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--shape", choices=_SHAPES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shape:
        _resume(options.shape, options.shards)
        return
    for shape in _SHAPES:
        command = [sys.executable, "-m", "benchmarks.resume_scale", "--shape", shape, "--shards", str(options.shards)]
        subprocess.run(command, check=True)


def _resume(shape: str, num_shards: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _write_half_done(folder, num_shards, _FILES if shape == _SHAPES[0] else num_shards)
        before_bytes = resident_bytes("VmHWM")
        started = time.perf_counter()
        files = _cut_files(num_shards) if shape == _SHAPES[0] else _whole_files(num_shards)
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
        grown = (resident_bytes("VmHWM") - before_bytes) / 1e6
        print(f"{shape}: {num_shards:,} shards planned, {len(pending):,} left, in {len(blocks):,} blocks")
        print(
            f"plans {planned_seconds:.2f} s, input {compared_seconds - planned_seconds:.2f} s, "
            f"ledger {read_seconds - compared_seconds:.2f} s"
        )
        print(f"resume {seconds:.2f} s (limit 5), {grown:.0f} MB above the imports (limit 300)")
        print(f"plans in an actor: {_actor_bytes(plans, folder) / 1e6:.0f} MB (limit 100)", flush=True)


def _cut_files(num_shards: int) -> FileColumns:
    names = [f"part-{number:05}.txt" for number in range(_FILES)]
    return _columns(FileKind("web", "/data", "text", separator="\n\n"), names, _SHARD_BYTES * num_shards // _FILES)


def _whole_files(num_shards: int) -> FileColumns:
    names = [f"segment-{number % 1000:04}/part-{number:07}.jsonl.zst" for number in range(num_shards)]
    return _columns(FileKind("web", "s3://bucket/crawl/2026", "jsonl", "zstd"), names, _SHARD_BYTES)


def _columns(kind: FileKind, names: list[str], num_bytes: int) -> FileColumns:
    times = np.zeros(len(names), np.int64)
    times[_TOUCHED] = 1
    return FileColumns([kind], np.zeros(len(names), np.int32), names, np.full(len(names), num_bytes), times)


def _actor_bytes(plans: ShardPlans, folder: str) -> int:
    path = Path(folder) / "plans"
    path.write_bytes(pickle.dumps(plans, 5))
    done = subprocess.run([sys.executable, "-c", _ACTOR, path], check=True, capture_output=True, text=True)
    return int(done.stdout)


def _write_half_done(folder: str, num_shards: int, num_files: int) -> None:
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
    write_times(f"{folder}/{FOLDER}/times", np.zeros(num_files, np.int64))


def resident_bytes(name: str) -> int:
    """Return this process's memory by a name of /proc: VmRSS, or VmHWM for its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
