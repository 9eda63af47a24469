"""What a training run logged, read back, and where two runs part.

Reads a run's newest whole checkpoint's description and its journal of metrics, both plain files.
Called by `herd replay` and `herd compare`; writes nothing.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_core.errors import CheckpointError
from gpt_core.ledger import first_difference
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description
from gpt_core.training.training_plan import TrainingPlan

JOURNAL = "metrics.jsonl"
# What a step's result is; rates and memory differ between any two runs.
_EXACT = ("loss", "grad_norm", "learning_rate", "validation_loss")


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """A step's exact numbers as first logged."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two runs part.

    Attributes:
        settings: (name, of the first, of the second) of the first thing set that decides results; None if none differs.
        corpus: Root digests of the two corpora if they differ.
        first_step: First step logged with other numbers, None if no common step differs.
        numbers: (name, of the first, of the second) at that step.
        last_common: Last step that both logged, equal up to it unless first_step says otherwise; 0 for none.
        steps: Last logged step of each.
    """

    settings: tuple[str, Any, Any] | None
    corpus: tuple[str | None, str | None] | None
    first_step: int | None
    numbers: tuple[str, float | None, float | None] | None
    last_common: int
    steps: tuple[int, int]


def logged_steps(run_folder: str) -> dict[int, LoggedStep]:
    """Return every logged step of a run by its number; of a step logged twice the first counts.

    Raises:
        CheckpointError: The folder has no journal.
    """
    path = Path(run_folder) / JOURNAL
    if not path.is_file():
        raise CheckpointError(run_folder, f"no {JOURNAL}", "the folder of a training run", "name another")
    steps: dict[int, LoggedStep] = {}
    for record in _records(path):
        step, metrics = record["step"], record["metrics"]
        values = {name: float(metrics[name]) for name in _EXACT if name in metrics}
        steps.setdefault(step, LoggedStep(step, values))
    return steps


def description_of(run_folder: str) -> Description:
    """Return the description of a run's newest checkpoint whose description is whole.

    Raises:
        CheckpointError: There is none.
    """
    for path in reversed(checkpoint.list_paths(run_folder)):
        try:
            return checkpoint.read_description(path)
        except CheckpointError:
            continue
    raise CheckpointError(run_folder, "no whole checkpoint", "the folder of a training run", "name another")


def compare(first: str, second: str) -> Parting:
    """Return where two runs part.

    Raises:
        CheckpointError: One of the folders is none of a training run.
    """
    begun = [description_of(folder) for folder in (first, second)]
    identities = [TrainingPlan.from_dict(found.settings).identity() for found in begun]
    digests = (begun[0].corpus_digest, begun[1].corpus_digest)
    logged = [logged_steps(folder) for folder in (first, second)]
    common = sorted(logged[0].keys() & logged[1].keys())
    differing = next((step for step in common if _difference(logged[0][step], logged[1][step])), None)
    return Parting(
        settings=first_difference(identities[0], identities[1]),
        corpus=digests if digests[0] != digests[1] else None,
        first_step=differing,
        numbers=_difference(logged[0][differing], logged[1][differing]) if differing is not None else None,
        last_common=max(common, default=0),
        steps=(max(logged[0], default=0), max(logged[1], default=0)),
    )


def _difference(first: LoggedStep, second: LoggedStep) -> tuple[str, float | None, float | None] | None:
    """Return (name, values) of the first number both logged that differs; NaN equals NaN."""
    for name in [name for name in first.values if name in second.values]:
        before, after = first.values[name], second.values[name]
        if before != after and not (math.isnan(before) and math.isnan(after)):
            return name, before, after
    return None


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the journal's whole lines of metrics; a torn one, left by a kill, is passed over."""
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("do") == "metrics":
                yield record
