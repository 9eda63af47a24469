"""Checkpoints written behind the training thread's back.

The training thread takes a snapshot and goes on; a thread of this module writes.
One write is under way at a time, and its outcome, good or bad, reaches the training thread.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from gpt_core.storage import Location
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description


class CheckpointWriter:
    """Writes the checkpoints of one run, prunes old ones, and reports each that is committed.

    Args:
        run_folder: Where the run's checkpoints lie.
        keep: Newest checkpoints kept, besides the best.
        committed: Called with (path, step, metrics) by ``poll`` or ``wait``, on their thread.
    """

    def __init__(
        self, run_folder: str, keep: int, committed: Callable[[Location, int, dict[str, float]], None]
    ) -> None:
        self.last_step: int | None = None
        """Step of the checkpoint begun last."""
        self._run_folder = run_folder
        self._keep = keep
        self._committed = committed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: tuple[Future[Location], Description] | None = None

    def begin(self, description: Description, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Write a snapshot in the background; nobody may change it. The one before it must have been waited for."""
        assert self._under_way is None
        self.last_step = description.step
        future = self._thread.submit(self._write, description, weights, state)
        self._under_way = (future, description)

    def poll(self) -> None:
        """Report a write that has ended; raise its error if it failed."""
        if self._under_way is not None and self._under_way[0].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the write under way, if any, and report it; raise its error if it failed."""
        if self._under_way is None:
            return
        future, description = self._under_way
        self._under_way = None
        self._committed(future.result(), description.step, description.metrics)

    def close(self) -> None:
        """End the thread; a write under way is finished first."""
        self._thread.shutdown()

    def _write(self, description: Description, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Location:
        path = checkpoint.write(self._run_folder, description, weights, state)
        checkpoint.prune(self._run_folder, self._keep)
        return path
