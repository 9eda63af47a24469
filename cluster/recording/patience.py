"""Calls to a store that may be slow, away, or unwilling.

:class:`Patience` separates the three: it waits out an outage however long it lasts, reports a refusal,
and sets aside the one call that keeps failing on a store that otherwise works.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from cluster.progress import say
from cluster.recording.journal import Point, Record
from gpt_core.credentials import without_credentials

_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.2, 5.0
_CLOSING_DELAY_SECONDS = 0.5
_QUIET_OUTAGE_SECONDS = 1.0
_TRIES_ON_A_LIVING_STORE = 8
T = TypeVar("T")


class Store(Protocol):
    """What the replay needs of MLflow; a call that raises may have taken effect all the same."""

    name: str

    def connect(self) -> None:
        """Find the experiment, or make it."""
        ...

    def is_refusal(self, error: Exception) -> bool:
        """Return whether the same call would fail for ever."""
        ...

    def is_active(self, run_id: str) -> bool:
        """Return whether the run is there and not deleted."""
        ...

    def find_runs(self, key: str) -> list[str]:
        """Return the ids of the runs that carry the key, oldest first."""
        ...

    def create_run(self, key: str, opened: Record, parent_id: str | None) -> str:
        """Create a run that carries the key and return its id."""
        ...

    def delete_run(self, run_id: str) -> None:
        """Delete a run."""
        ...

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        """Set RUNNING, or a final status with its time in milliseconds."""
        ...

    def recorded_steps(self, run_id: str, metric: str) -> set[int]:
        """Return the steps the store holds of a metric."""
        ...

    def log_points(self, run_id: str, points: list[Point]) -> None:
        """Store up to 1,000 points in one request."""
        ...

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        """Store params; the same again changes nothing."""
        ...

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Store tags, replacing earlier values."""
        ...

    def delete_tag(self, run_id: str, tag: str) -> None:
        """Delete one tag."""
        ...

    def log_dataset(self, run_id: str, dataset: Record) -> None:
        """Store a dataset as input of the run; the same again changes nothing."""
        ...

    def log_artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        """Store a file, replacing an earlier one of the name."""
        ...

    def log_model(self, run_id: str, key: str, model: Record) -> None:
        """Store a checkpoint's model with its metrics; the same again changes nothing."""
        ...

    def log_model_input(self, run_id: str, digest: str) -> None:
        """Store the checkpoint with this digest as input of the run; the same again changes nothing."""
        ...

    def register_model(self, run_id: str, key: str, folder: Path, registered: Record) -> None:
        """Make a folder the files and the newest version of a checkpoint's model; the same again changes nothing."""
        ...


class AbandonedError(Exception):
    """The job ends without waiting for the store any longer."""


class RefusedError(Exception):
    """The store answered, and the answer will stay no."""


class Patience:
    """Repeats calls to one store until they succeed; any thread may set `closing` or `abandoned`."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder
        self.closing, self.abandoned = threading.Event(), threading.Event()
        self._outage_since: float | None = None
        self._warned = False

    def outage_seconds(self) -> float:
        """Return for how long the store has not answered; 0 if it answers."""
        since = self._outage_since
        return 0.0 if since is None else time.monotonic() - since

    def call(self, call: Callable[[], T], *, may_refuse: bool = False, alive: Callable[[], bool] | None = None) -> T:
        """Call until it succeeds, waiting longer after each failure.

        Raises:
            RefusedError: If `may_refuse` and the store's answer is final, or if `alive` shows, again
                and again, that the store works and only this call fails.
            AbandonedError: If the job does not wait any longer.
        """
        delay, tries = _FIRST_DELAY_SECONDS, 0
        while True:
            if self.abandoned.is_set():
                raise AbandonedError
            try:
                result = call()
            except Exception as error:
                tries += alive is not None and _answers(alive)
                refused = may_refuse and self._store.is_refusal(error)
                if refused or tries >= _TRIES_ON_A_LIVING_STORE:
                    raise RefusedError(first_line(error)) from error
                self._wait_out(error, delay)
                delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
            else:
                self._note_answer()
                return result

    def _wait_out(self, error: Exception, delay: float) -> None:
        self._outage_since = self._outage_since or time.monotonic()
        if not self._warned and self.outage_seconds() > _QUIET_OUTAGE_SECONDS:
            self._warned = True
            say(
                f"tracking: {self._store.name} does not answer ({first_line(error)}); "
                f"the job goes on, its records wait in {self._folder}"
            )
        if self.closing.is_set():
            self.abandoned.wait(min(delay, _CLOSING_DELAY_SECONDS))
        else:
            self.closing.wait(delay)

    def _note_answer(self) -> None:
        if self._warned:
            seconds = self.outage_seconds()
            say(f"tracking: {self._store.name} answers again after {seconds:.0f} s; sending what waits")
        self._outage_since, self._warned = None, False


def _answers(alive: Callable[[], bool]) -> bool:
    try:
        return alive()
    except Exception:
        return False


def first_line(error: BaseException) -> str:
    """Return the first line of the error that began it, at most 200 characters, without passwords.

    MLflow wraps a refused connection in four exceptions and their whole history.
    """
    while cause := error.__cause__ or error.__context__:
        error = cause
    lines = without_credentials(str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
