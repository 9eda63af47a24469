"""What is done of a planned-shard job: the memory that makes a killed job cheap to run again.

A worker commits a shard by writing its files and then a small row beside them; the driver
moves rows into one journal. Either is proof that the shard is whole, so after any kill at most
the shards that were being written are written again, to the same bytes. The ledger lives in
the output folder and is removed once the manifest stands.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt_core.errors import StaleOutputError

_FOLDER = ".progress"
_INDEX_DIGITS = 10

Row = dict[str, Any]


class Ledger:
    """Committed shards of the job that writes `folder`.

    Args:
        folder: Output folder of the job, on storage that all workers share.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._root = Path(folder) / _FOLDER
        self._rows = self._root / "rows"
        self._tries = self._root / "tries"
        self._journal = self._root / "journal"
        self._job = self._root / "job.json"

    def open(self, settings: dict[str, Any]) -> None:
        """Begin a job with these settings, or take up the one that was begun with them.

        Raises:
            StaleOutputError: If the unfinished job in the folder had other settings, naming the first.
        """
        for folder in (self._rows, self._tries):
            folder.mkdir(parents=True, exist_ok=True)
        if not self._job.exists():
            _write_atomically(self._job, json.dumps(settings, sort_keys=True))
            return
        begun = json.loads(self._job.read_text())
        if difference := first_difference(begun, settings):
            name, old, new = difference
            raise StaleOutputError(
                f"{self.folder}: {name}",
                f"an unfinished job begun with {old!r}",
                f"the {new!r} of this run",
                "run it with the old value, or choose another output folder, or delete this one",
            )

    def committed(self, index: int) -> Row | None:
        """Return the row a worker committed for the shard and the driver has not yet taken, else None."""
        path = self._rows / f"{index}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def commit(self, index: int, row: Row) -> None:
        """Record, atomically, that the files of the shard are whole."""
        _write_atomically(self._rows / f"{index}.json", json.dumps(row))
        (self._tries / str(index)).unlink(missing_ok=True)

    def begin_try(self, index: int) -> int:
        """Return how many times the shard has been tried, this time included, also by workers that died."""
        descriptor = os.open(self._tries / str(index), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, b"+")
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def forget_tries(self) -> None:
        """Give every shard its tries again; a new run of the command may find the cause mended."""
        shutil.rmtree(self._tries, ignore_errors=True)
        self._tries.mkdir(parents=True, exist_ok=True)

    def record(self, rows: Iterable[Row]) -> None:
        """Append rows to the journal durably, then drop the workers' own copies."""
        taken = list(rows)
        with self._journal.open("a") as journal:
            for row in taken:
                journal.write(f"{row['index']:0{_INDEX_DIGITS}d} {json.dumps(row)}\n")
            journal.flush()
            os.fsync(journal.fileno())
        for row in taken:
            (self._rows / f"{row['index']}.json").unlink(missing_ok=True)

    def done(self, num_plans: int) -> np.ndarray:
        """Return a bool mask over the plans; rows that workers left behind are journalled first."""
        self._mend_journal()
        done = np.zeros(num_plans, dtype=bool)
        for line in self._lines():
            done[int(line[:_INDEX_DIGITS])] = True
        left = [json.loads(path.read_text()) for path in self._rows.glob("*.json")]
        self.record(row for row in left if not done[row["index"]])
        for row in left:
            done[row["index"]] = True
        return done

    def rows(self) -> Iterator[Row]:
        """Yield one row a committed shard, in the order of their commits."""
        seen: set[int] = set()
        for line in self._lines():
            index = int(line[:_INDEX_DIGITS])
            if index not in seen:
                seen.add(index)
                yield json.loads(line[_INDEX_DIGITS + 1 :])

    def remove(self) -> None:
        """Delete the ledger; called once the manifest stands."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _lines(self) -> Iterator[str]:
        if self._journal.exists():
            with self._journal.open() as journal:
                yield from journal

    def _mend_journal(self) -> None:
        """Cut a line that a crash left half written; its shard's own row is still there."""
        if not self._journal.exists():
            return
        with self._journal.open("rb+") as journal:
            data_bytes = journal.seek(0, os.SEEK_END)
            tail_bytes = min(data_bytes, 1 << 20)
            journal.seek(data_bytes - tail_bytes)
            tail = journal.read(tail_bytes)
            journal.truncate(data_bytes - tail_bytes + tail.rfind(b"\n") + 1)


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """Return (dotted name, old value, new value) of the first setting that differs, None if all agree."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            if inner := first_difference(before, after, f"{prefix}{name}."):
                return inner
        elif before != after:
            return f"{prefix}{name}", before, after
    return None


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
