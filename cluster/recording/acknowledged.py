"""What the tracking store has of a job already: by its own answers, or asked for where that is in doubt."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.recording.journal import Point


@dataclass(slots=True)
class Acknowledged:
    """What the store has: run ids by run key, and bytes acknowledged by journal; run.json holds it."""

    store: str
    runs: dict[str, str] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, store: str) -> "Acknowledged":
        """Read run.json; empty if it is absent, damaged, or about another store: all is then sent anew."""
        try:
            found = cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(store)
        return found if found.store == store else cls(store)

    def forget_lost_lines(self, folder: Path) -> None:
        """Take offsets back to the ends of their journals, which a machine that lost its power may have cut."""
        for name, offset in self.offsets.items():
            journal = folder / name
            self.offsets[name] = min(offset, journal.stat().st_size if journal.exists() else 0)

    def save(self, path: Path) -> None:
        """Replace run.json atomically."""
        aside = path.with_name(path.name + ".tmp")
        aside.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")
        os.replace(aside, path)  # noqa: PTH105 - the same call as Path.replace, said plainly


class RecordedSteps:
    """The steps the store already holds, by run and metric, asked for only where they are in doubt."""

    def __init__(self, ask: Callable[[str, str], set[int]]) -> None:
        self._ask = ask
        self._known: dict[tuple[str, str], set[int]] = {}
        self._new_runs: set[str] = set()

    def trust_empty(self, run_id: str) -> None:
        """Remember that this process has just created the run: it holds nothing yet."""
        self._new_runs.add(run_id)

    def unrecorded(self, run_id: str, points: list[Point]) -> list[Point]:
        """Return the points whose step the store does not hold."""
        for metric in {point.metric for point in points}:
            if (run_id, metric) not in self._known:
                steps = set() if run_id in self._new_runs else self._ask(run_id, metric)
                self._known[run_id, metric] = steps
        return [point for point in points if point.step not in self._known[run_id, point.metric]]

    def doubt(self, run_id: str, points: list[Point]) -> None:
        """Forget what is known about these metrics: a batch of them may or may not have arrived."""
        self._new_runs.discard(run_id)
        for metric in {point.metric for point in points}:
            self._known.pop((run_id, metric), None)
