"""Training workers that are lost, counted."""

from dataclasses import dataclass
from pathlib import Path

from cluster.session import cause_of
from gpt_core.training import checkpoint

LOSSES = ".losses.jsonl"
"""In the run's folder: a line for each start in place, which the driver tells."""


@dataclass(slots=True)
class Losses:
    """Losses of workers in a row without a new checkpoint between them.

    Attributes:
        folder: The run's local folder.
        output: Where its checkpoints lie.
        most: How many of them are survived.
        step: Newest checkpoint's at the last loss, or at the start.
        failures: How many there were since that checkpoint.
    """

    folder: Path
    output: str
    most: int
    step: int
    failures: int = 0

    def add(self) -> bool:
        """Count one more and return whether it is survived."""
        if (reached := newest_step(self.output)) > self.step:
            self.failures, self.step = 0, reached
        self.failures += 1
        return self.failures <= self.most

    def told(self, error: BaseException) -> str:
        """Return the last one in a sentence."""
        what = cause_of(error).found.partition(". ")[0].rstrip(".")[:200]
        return (
            f"lost workers ({what}); starting again from step {newest_step(self.output)} "
            f"(failure {self.failures} of {self.most} without progress)"
        )


def newest_step(output: str) -> int:
    """Return the step of the newest checkpoint, 0 where there is none."""
    paths = checkpoint.list_paths(output)
    return int(paths[-1].name.rpartition("-")[2]) if paths else 0
