"""The local, append-only journal that takes every record of a run before MLflow sees it.

The driver, and rank 0 of a training job, append; the driver's replay (:mod:`cluster.recording.replay`) tails.
A line is one JSON object and is handed to the operating system whole, so a killed process loses
at most the line it was writing. Neither side imports mlflow.

Invariant: of all points with the same (run, metric, step) the first one counts, and which points
MLflow gets depends on the journal's lines alone. A training run that is killed and repeats some
steps therefore ends with the history of an undisturbed one.
"""

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gpt_core.errors import ResourceError

Record = dict[str, Any]

_READ_BYTES = 1 << 20
_METRIC_NAME = re.compile(r"[/\w.\- :]{1,250}")
_STEPS_PER_CHUNK = 1024


@contextlib.contextmanager
def room_needed(path: Path) -> Iterator[None]:
    """Turn a full disk, and whatever else keeps the block from writing, into an error that says what to do.

    Raises:
        ResourceError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        found = error.strerror or str(error)
        raise ResourceError(str(path), found, "a place with room to write", "free space and run it again") from error


class Journal:
    """Appends records to one file; threads and processes may share it.

    Opening heals the torn line a killed process may have left: a line feed is added, and readers
    then skip the fragment. Nothing is ever rewritten, so a reader that follows the file stays right.

    Raises:
        ResourceError: If the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with room_needed(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._torn = _ends_torn(self._file)

    def append(self, record: Record) -> None:
        """Write one line, unbuffered; the kernel has it on return, the disk after :meth:`sync`.

        Raises:
            ResourceError: If the disk is full; the next append starts on a line of its own.
        """
        line = orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
        with self._lock, room_needed(self.path):
            if self._torn:
                line = b"\n" + line
            self._torn = True
            while line:
                line = line[os.write(self._file, line) :]
            self._torn = False

    def append_metrics(
        self, metrics: Mapping[str, float], *, step: int, tokens: int | None = None, run: str = ""
    ) -> None:
        """Append the values of one step, stamped with the time in milliseconds.

        Args:
            metrics: Value by name; NaN and infinities are kept.
            step: Optimizer step, or another count that grows with the run.
            tokens: Tokens seen so far, kept as the metric `tokens`: the second axis of the same step.
            run: Key of the run inside its job; empty for the job's own run and for worker journals.

        Raises:
            ValueError: If MLflow would refuse the name of a metric.
            ResourceError: If the disk is full.
        """
        for name in metrics:
            if not _METRIC_NAME.fullmatch(name):
                raise ValueError(f"metric name {name!r}: expected 1-250 letters, digits, blanks or any of _ - . : /")
        values = dict(metrics) if tokens is None else {**metrics, "tokens": tokens}
        portable = {name: _portable(value) for name, value in values.items()}
        self.append({"do": "metrics", "run": run, "step": int(step), "time": now_milliseconds(), "metrics": portable})

    def sync(self) -> None:
        """Force all lines to the disk; ResourceError where it is full."""
        with room_needed(self.path):
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file; further appends fail."""
        os.close(self._file)


def now_milliseconds() -> int:
    """Return the time since the epoch in milliseconds, MLflow's unit."""
    return time.time_ns() // 1_000_000


def _ends_torn(file: int) -> bool:
    num_bytes = os.fstat(file).st_size
    return num_bytes > 0 and os.pread(file, 1, num_bytes - 1) != b"\n"


def _portable(value: float) -> float | str:
    # JSON has no NaN and no infinities; float() reads these names back.
    number = float(value)
    return number if math.isfinite(number) else repr(number)


@dataclass(slots=True)
class Tail:
    """Reads the complete lines of a growing journal.

    Attributes:
        path: The journal; it may not exist yet.
        offset: Bytes read so far, always the start of a line.
        num_damaged: Lines that were no JSON object, which a killed writer leaves behind.
    """

    path: Path
    offset: int = 0
    num_damaged: int = 0

    def read(self, end: int | None = None) -> list[Record]:
        """Return the next records, about 1 MiB of lines at most, up to byte `end` if given.

        A last line without its line feed is left for later: its writer may still be at it.
        """
        lines = self._next_lines(end)
        self.offset += len(lines)
        records = []
        for line in lines.splitlines():
            record = _parsed(line)
            if record is not None:
                records.append(record)
            elif line.strip():
                self.num_damaged += 1
        return records

    def _next_lines(self, end: int | None) -> bytes:
        num_bytes = _READ_BYTES
        while True:
            try:
                with self.path.open("rb") as file:
                    file.seek(self.offset)
                    data = file.read(num_bytes if end is None else min(num_bytes, max(0, end - self.offset)))
            except FileNotFoundError:
                return b""
            lines = data[: data.rfind(b"\n") + 1]
            if lines or len(data) < num_bytes:
                return lines
            num_bytes *= 2


def _parsed(line: bytes) -> Record | None:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def read_all(path: Path) -> Iterator[Record]:
    """Yield every complete record of a journal, damaged lines left out."""
    tail = Tail(path)
    while records := tail.read():
        yield from records


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric; `time` is in milliseconds since the epoch."""

    metric: str
    step: int
    time: int
    value: float


@dataclass(slots=True)
class Series:
    """Which steps of one metric have been seen, and which of them MLflow gets.

    The n-th distinct step (from 1) is kept if n is 1 or a multiple of :func:`stride`.
    Steps are remembered as bits, 1024 to an integer: 500,000 of them take about 90 KB.
    """

    num_points: int = 0
    held: Point | None = None
    _chunks: dict[int, int] = field(default_factory=dict)

    def take(self, point: Point) -> Point | None:
        """Return the point if MLflow gets it now; None for a repeated step or one between strides."""
        chunk, bit = divmod(point.step, _STEPS_PER_CHUNK)
        bits = self._chunks.get(chunk, 0)
        if bits >> bit & 1:
            return None
        self._chunks[chunk] = bits | 1 << bit
        self.num_points += 1
        if self.num_points == 1 or self.num_points % stride(self.num_points) == 0:
            self.held = None
            return point
        self.held = point
        return None

    def take_held(self) -> Point | None:
        """Return and forget the newest point if it fell between strides: a finished run's last point is sent."""
        point, self.held = self.held, None
        return point


def stride(num_points: int) -> int:
    """Return every how many points one goes to MLflow: 1 up to 2,000, then at most 0.1% of the points so far.

    The strides are 1, 2, 5, 10, 20, 50, ...; 500,000 steps give 10,000 points. The journal keeps all.
    """
    limit = max(1, num_points // 1000)
    scale = 10 ** (len(str(limit)) - 1)
    return next(scale * factor for factor in (5, 2, 1) if scale * factor <= limit)


def points_of(record: Record) -> Iterator[Point]:
    """Yield the points of a metrics record."""
    for metric, value in record["metrics"].items():
        yield Point(metric, record["step"], record["time"], float(value))
