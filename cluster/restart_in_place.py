"""Training workers that are lost, started again by Ray Train where they were.

A group that starts again in place keeps Ray Train's controller, in whose process this runs, and is at work seconds
sooner than a new start. What that cannot mend is raised, and so reaches ``cluster.fitting`` in the driver.
"""

import json
from collections.abc import Mapping
from typing import Any

from ray.train import UserCallback

from cluster.capacity import answering_nodes
from cluster.session import is_mistake_in_code, own_error_in
from cluster.worker_losses import LOSSES, Losses


class GroupLostError(Exception):
    """A group of workers that must not start again as it was.

    Args:
        worker_failures: What each rank that failed raised.
    """

    def __init__(self, worker_failures: Mapping[int, Exception]) -> None:
        super().__init__(f"ranks {sorted(worker_failures)} were lost")
        self.worker_failures = dict(worker_failures)

    def __reduce__(self) -> tuple[type, tuple[Mapping[int, Exception]]]:
        return type(self), (self.worker_failures,)


class RestartInPlace(UserCallback):
    """Lets Ray Train start a lost group again, in its controller; raises GroupLostError where that would not help.

    Args:
        losses: Those before; this copy counts on.
        nodes: Those of the cluster, if one of them may be done without; None where all are waited for.
    """

    def __init__(self, losses: Losses, nodes: set[str] | None) -> None:
        self._losses, self._nodes = losses, nodes

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002
        """Note a loss that is survived, raise any other."""
        error = GroupLostError(worker_exceptions)
        if own_error_in(error) or is_mistake_in_code(error) or self._has_lost_a_node() or not self._losses.add():
            raise error
        note = {"told": self._losses.told(error), "step": self._losses.step, "failures": self._losses.failures}
        with (self._losses.folder / LOSSES).open("a") as file:
            file.write(json.dumps(note) + "\n")

    def _has_lost_a_node(self) -> bool:
        return self._nodes is not None and len(self._nodes) > 1 and not self._nodes <= answering_nodes()
