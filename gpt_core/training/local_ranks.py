"""Ranks on this machine without a cluster: processes joined by gloo through a file."""

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gpt_core.errors import RunFailedError
from gpt_core.training.reduction import Ranks


def run_on_ranks(num_ranks: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``work(ranks, *arguments)`` of rank 0, called in as many processes; in this one for one rank.

    The function must be importable by its name, its result small (less than a pipe holds).

    Raises:
        Exception: The first one that a rank raised.
        RunFailedError: A process that died.
    """
    if num_ranks == 1:
        return work(Ranks(), *arguments)
    context = multiprocessing.get_context("spawn")
    results: Any = context.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="herd-ranks-") as folder:
        meeting = Path(folder) / "meeting"
        processes = [
            context.Process(
                target=_body, args=(results, Ranks(rank, num_ranks), str(meeting), work, arguments), daemon=True
            )
            for rank in range(num_ranks)
        ]
        for process in processes:
            process.start()
        return _first_result(processes, results)


def _first_result(processes: list[Any], results: Any) -> Any:
    """Return rank 0's result once every process has ended."""
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        codes = [process.exitcode for process in processes]
        raise RunFailedError("ranks", f"exit codes {codes}", "zeros", "see what the processes printed")
    found = dict(results.get() for _ in processes)
    errors = [result for result in found.values() if isinstance(result, Exception)]
    if errors:
        raise errors[0]
    return found[0]


def loopback_interface() -> str:
    """Return the name of this machine's loopback interface, "lo" on Linux."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def _body(results: Any, ranks: Ranks, meeting: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback_interface())
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=ranks.rank, world_size=ranks.num_ranks)
        result = work(ranks, *arguments)
        dist.destroy_process_group()
    except Exception as error:  # handed to the caller's process
        result = error
    results.put((ranks.rank, result))
