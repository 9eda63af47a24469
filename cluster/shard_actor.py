"""What works through the plans of a planned-shard job, one after the other, in a Ray actor.

A module of its own, for every actor imports it: settings, sessions and progress bars would add a quarter of a second
of processor time to each actor's start, and they are the driver's matter.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpt_core.errors import UserError
from gpt_core.ledger import Ledger, Row
from gpt_core.storage import full_disk_named


class ShardActor:
    """Runs one worker in a Ray actor and keeps the ledger's promises around it.

    Args:
        plans: All plans of the job.
        make_worker: Makes the worker, here and after an error that is not the user's.
        folder: Output folder of the job.
        max_tries: Times that a plan is tried, dead workers' tries included, before it is reported as failed.
    """

    def __init__(
        self,
        plans: Sequence[Any],
        make_worker: Callable[[], Callable[[Any], Row]],
        folder: str,
        max_tries: int,
    ) -> None:
        self._plans, self._make_worker = plans, make_worker
        self._worker = make_worker()
        self._ledger = Ledger(folder)
        self._max_tries = max_tries

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Do the plans of a batch and return their rows as JSON."""
        return {"row": [json.dumps(self._row(int(index))) for index in batch["plan"]]}

    def _row(self, index: int) -> Row:
        try:
            with full_disk_named(self._ledger.folder, "room for the output"):
                return self._ledger.committed(index) or self._tried(index)
        except UserError as error:
            # As data: Ray Data changes the text of exceptions on their way.
            return {"index": index, "user_error": [type(error).__name__, *error.args]}

    def _tried(self, index: int) -> Row:
        reason = "the worker process died each time (out of memory, or a crash in native code)"
        while self._ledger.begin_try(index) <= self._max_tries:
            try:
                row = {"index": index, **self._worker(self._plans[index])}
            except UserError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                self._worker = self._make_worker()
            else:
                self._ledger.commit(index, row)
                return row
        return {"index": index, "failure": reason}
