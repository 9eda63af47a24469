"""Batches made ready on a thread of their own, so that no step waits for the disk.

Used by the training loop.  The order of the batches is that of the steps; an error while making
one is raised where it is taken.
"""

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

_POLL_SECONDS = 0.1


class Prefetcher:
    """Calls ``make(step)`` for one step after another, at most ``depth`` of them ahead.

    Args:
        make: Returns a step's micro-batches; called on the thread alone.
        first_step: Where to begin.
        stop_step: Where to end.
        depth: Batches held ready.
    """

    def __init__(self, make: Callable[[int], np.ndarray], first_step: int, stop_step: int, depth: int = 2) -> None:
        self._make = make
        self._steps = range(first_step, stop_step)
        self._ready: queue.Queue[np.ndarray | BaseException] = queue.Queue(depth)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()

    def take(self) -> tuple[np.ndarray, float]:
        """Return the next batch and the seconds spent waiting for it."""
        start = time.perf_counter()
        batch = self._ready.get()
        if isinstance(batch, BaseException):
            raise batch
        return batch, time.perf_counter() - start

    def _fill(self) -> None:
        for step in self._steps:
            try:
                batch = self._make(step)
            except BaseException as error:  # handed to the step that needed the batch
                self._put(error)
                return
            if not self._put(batch):
                return

    def _put(self, batch: np.ndarray | BaseException) -> bool:
        while not self._closing.is_set():
            try:
                self._ready.put(batch, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
