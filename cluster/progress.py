"""Progress for people: bars on a terminal, plain lines elsewhere, on standard error."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 5.0


def say(line: str) -> None:
    """Print one line about the job on standard error."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


class Meter:
    """Counts of one stage against its total, shown as a bar or as a line every few seconds."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None) -> None:
        self._title, self._total, self._unit, self._bar = title, total, unit, bar
        self._shown = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._task = bar.add_task(title, total=total, facts="") if bar else None

    def show(self, done: int, facts: str = "") -> None:
        """Show that `done` of the total is reached, with facts such as a rate."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, facts=facts)
            return
        now = time.monotonic()
        if self._first is None:
            self._first = done, now  # start-up and what an earlier run did say nothing about the rate
        if now - self._shown >= _SECONDS_BETWEEN_LINES and done < self._total:
            self._shown = now
            say(f"{self._title}: {done:,} of {self._total:,} {self._unit}{_joined(facts)}{self._left(done, now)}")

    def _left(self, done: int, now: float) -> str:
        first_done, first_time = self._first or (done, now)
        if done <= first_done:
            return ""
        return f", {(self._total - done) * (now - first_time) / (done - first_done):.0f} s left"


def _joined(facts: str) -> str:
    return f", {facts}" if facts else ""


@contextmanager
def meter(title: str, total: int, unit: str) -> Iterator[Meter]:
    """Show progress of one stage while the body runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Meter(title, total, unit, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TextColumn("{task.fields[facts]}"), TimeRemainingColumn(), console=console) as bar:
        yield Meter(title, total, unit, bar)
