"""Planned-shard jobs: a list of plans in, one committed shard a plan out, on any cluster.

Ray Data schedules and carries nothing: its rows are plan numbers, an actor pool maps over
them, and each actor reads its own input and commits its own output. Tokenizing, evaluating
and batch generation are such jobs. The order of commits, the number of actors and kills
change nothing in the files.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.progress import meter
from cluster.session import Cluster, quiet_libraries
from cluster.shard_actor import ShardActor
from gpt_core import errors
from gpt_core.counted import counted
from gpt_core.errors import RunFailedError
from gpt_core.ledger import Ledger, Row
from gpt_core.settings import PoolSettings
from gpt_core.storage import full_disk_named

# A block is a task of Ray Data. One takes this share of the plans still to give out: few tasks for a million plans,
# and single plans at the end, so that no actor is left with many when the others have finished.
_SHARE_OF_REST = 1 / 512


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What to do, and where.

    Attributes:
        title: Word for progress lines, such as "tokenize".
        folder: Output folder.
        settings: What decides the result; a folder begun with others is refused.
        plans: One picklable plan a shard.
        make_worker: Called once in every actor; the worker maps a plan to the row it committed.
        pool: Size of the actor pool.
        unit: What `num_tokens` of the rows counts, for the rate.
    """

    title: str
    folder: str
    settings: dict[str, Any]
    plans: Sequence[Any]
    make_worker: Callable[[], Callable[[Any], Row]]
    pool: PoolSettings
    unit: str = "tokens"


def run_shard_job(job: ShardJob, cluster: Cluster) -> Ledger:
    """Do every plan that is not done yet and return the ledger with all rows.

    Raises:
        StaleOutputError: If the folder holds an unfinished job with other settings.
        UserError: The first one a worker raises; the job stops.
        RunFailedError: If plans failed in every try; the others are done and kept.
    """
    with full_disk_named(job.folder, "room for the output"):
        return _finished_ledger(job, cluster)


def _finished_ledger(job: ShardJob, cluster: Cluster) -> Ledger:
    ledger = Ledger(job.folder)
    ledger.open(job.settings)
    ledger.forget_tries()
    pending = np.flatnonzero(~ledger.done(len(job.plans)))
    if len(pending) == 0:
        return ledger
    cluster.require_cpus(job.pool.min_actors * job.pool.cpus_per_actor, "pool.min_actors x pool.cpus_per_actor")
    failures = []
    with meter(job.title, len(job.plans), "shards") as shown:
        counted = _Rate(len(job.plans) - len(pending), job.unit)
        for row in _stream(job, pending, cluster):
            if "user_error" in row:
                name, *arguments = row["user_error"]
                raise getattr(errors, name)(*arguments)
            if "failure" in row:
                failures.append(row)
                continue
            ledger.record([row])
            shown.show(*counted.after(row))
    if failures:
        raise _failed(job, failures)
    return ledger


def _stream(job: ShardJob, pending: np.ndarray, cluster: Cluster) -> Iterator[Row]:
    """Yield the rows of pending plans as actors commit them."""
    import pyarrow as pa
    import ray.data

    quiet_libraries()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    pool = _pool_size(job.pool, len(pending), cluster)
    blocks = [pa.table({"plan": share}) for share in shares(pending)]
    dataset = ray.data.from_blocks(blocks).map_batches(
        ShardActor,
        fn_constructor_args=(job.plans, job.make_worker, job.folder, job.pool.max_tries),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=pool[0], max_size=pool[1]),
        num_cpus=job.pool.cpus_per_actor,
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for text in batch["row"]:
            yield json.loads(text)


def shares(pending: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pending plans in order, cut into ever smaller shares."""
    start = 0
    while start < len(pending):
        share = math.ceil((len(pending) - start) * _SHARE_OF_REST)
        yield pending[start : start + share]
        start += share


def _pool_size(pool: PoolSettings, num_pending: int, cluster: Cluster) -> tuple[int, int]:
    """Return actors at least and at most, never more than plans.

    On a running cluster `max_actors` may exceed what fits now: Ray Data adds actors when nodes join.
    """
    most = min(pool.max_actors or cluster.num_cpus, num_pending)
    if cluster.address is None:
        most = min(most, int(cluster.num_cpus / pool.cpus_per_actor))
    most = max(most, 1)
    return min(pool.min_actors, most), most


class _Rate:
    """Counts finished shards and their tokens a second, and their rows where the worker counts some."""

    def __init__(self, done: int, unit: str) -> None:
        self._started = time.monotonic()
        self._done, self._unit, self._tokens, self._rows = done, unit, 0, 0

    def after(self, row: Row) -> tuple[int, str]:
        self._done += 1
        self._tokens += row.get("num_tokens", 0)
        self._rows += row.get("num_rows", 0)
        seconds = max(time.monotonic() - self._started, 1e-9)
        rows = f"{self._rows / seconds:,.1f} rows/s, " if self._rows else ""
        return self._done, f"{rows}{self._tokens / seconds:,.0f} {self._unit}/s"


def _failed(job: ShardJob, failures: list[Row]) -> RunFailedError:
    first = failures[0]
    return RunFailedError(
        f"{job.title}: shard {first['index']} of {job.folder}",
        f"{counted(len(failures), 'shard')} that failed {job.pool.max_tries} times; the first with: {first['failure']}",
        "every shard to finish",
        "mend the cause and run the same command again; finished shards are kept",
    )
