"""Runs a function on several processes joined by gloo, for tests of what ranks do together."""

import multiprocessing as mp
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gpt_core.training.reduction import Ranks

_CONTEXT = mp.get_context("forkserver")
# The optimizers import torch._dynamo when first made: three seconds a process.
_CONTEXT.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", "gpt_core.training.loop"])


def run_on_ranks(num_ranks, folder, function, *arguments, killed=False, **options) -> list[Any]:
    """Return [function(Ranks, *arguments, **options) of rank 0, 1, ...]; function must be importable by its name.

    killed: the processes are expected to die by SIGKILL, and each result is None.
    """
    meeting = Path(folder) / f"meeting-{num_ranks}-{len(list(Path(folder).iterdir()))}"
    queue = _CONTEXT.SimpleQueue()
    call = (function, arguments, options)
    processes = [
        _CONTEXT.Process(target=_body, args=(queue, Ranks(rank, num_ranks), str(meeting), *call))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    results = {} if killed else dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    if killed:
        assert [process.exitcode for process in processes] == [-9] * num_ranks
        return [None] * num_ranks
    errors = [result for result in results.values() if isinstance(result, Exception)]
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(num_ranks)]


def _body(queue, ranks, meeting, function, arguments, options):
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=ranks.rank, world_size=ranks.num_ranks)
        result = function(ranks, *arguments, **options)
    except Exception as error:
        result = error
    queue.put((ranks.rank, result))
    if dist.is_initialized():
        dist.destroy_process_group()
