"""What is done of a planned-shard job: the memory that makes a killed job cheap to run again.

A worker commits a shard by writing its files and then a small row beside them; the driver gathers the rows in
one journal. Either is proof that the shard is whole, so after any kill at most the shards that were being
written are written again, to the same bytes. The ledger lives in the output folder, local or in an object
store, and is removed once the manifest stands.

The journal is a local file that only grows. Beside a local output it stays and takes the rows' place, so that a
resume reads one file; beside a URL, where nothing can be appended to, it is scratch and the rows stay.
"""

import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gpt_core.errors import StaleOutputError
from gpt_core.storage import Storage, is_url

FOLDER = ".progress"
_INDEX_DIGITS = 10
_ROWS_AT_ONCE = 1 << 12
_TAIL_BYTES = 1 << 20
_THREADS_FOR_OBJECTS = 32

Row = dict[str, Any]


class Ledger:
    """Committed shards of the job that writes `folder`.

    Args:
        folder: Output folder or URL of the job, on storage that all workers share.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._storage = Storage.of(folder)
        self._root = self._storage.join(FOLDER)
        self._rows = self._storage.join(FOLDER, "rows")
        self._tries = self._storage.join(FOLDER, "tries")
        self._job = self._storage.join(FOLDER, "job.json")
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._journal = Path(self._root) / "journal"

    def open(self, settings: dict[str, Any]) -> None:
        """Begin a job with these settings, or take up the one that was begun with them.

        Raises:
            StaleOutputError: If the unfinished job in the folder had other settings, naming the first.
        """
        if is_url(self.folder):
            self._scratch = tempfile.TemporaryDirectory(prefix="gpt-herd-ledger-")
            self._journal = Path(self._scratch.name) / "journal"
        if not self._storage.exists(self._job):
            self._write(self._job, json.dumps(settings, sort_keys=True))
            return
        begun = json.loads(self._read(self._job))
        if difference := first_difference(begun, settings):
            name, old, new = difference
            raise StaleOutputError(
                f"{self.folder}: {name}",
                f"an unfinished job begun with {old!r}",
                f"the {new!r} of this run",
                "run it with the old value, or choose another output folder, or delete this one",
            )

    def committed(self, index: int) -> Row | None:
        """Return the row a worker committed for the shard and the journal has not replaced, else None."""
        path = self._row_path(index)
        return json.loads(self._read(path)) if self._storage.exists(path) else None

    def commit(self, index: int, row: Row) -> None:
        """Record, atomically, that the files of the shard are whole."""
        self._write(self._row_path(index), json.dumps(row))
        self._storage.remove(f"{self._tries}/{index}")

    def begin_try(self, index: int) -> int:
        """Return how many times the shard has been tried, this time included, also by workers that died."""
        path = f"{self._tries}/{index}"
        if not is_url(path):
            # A byte a try, and no wait for the disk: a lost power supply may forget a try, a killed worker does not.
            Path(self._tries).mkdir(parents=True, exist_ok=True)
            with Path(path).open("ab") as file:
                file.write(b"x")
                return file.tell()
        tries = 1 + (int(self._read(path)) if self._storage.exists(path) else 0)
        self._write(path, str(tries))
        return tries

    def forget_tries(self) -> None:
        """Give every shard its tries again; a new run of the command may find the cause mended."""
        self._storage.remove_folder(self._tries)

    def record(self, rows: Iterable[Row]) -> None:
        """Append rows to the journal durably; where it stays, drop the workers' own copies."""
        taken = list(rows)
        with self._journal.open("ab") as journal:
            for row in taken:
                journal.write(f"{row['index']:0{_INDEX_DIGITS}d} {json.dumps(row)}\n".encode())
            journal.flush()
            os.fsync(journal.fileno())
        if self._scratch is None:
            for row in taken:
                self._storage.remove(self._row_path(row["index"]))

    def done(self, num_plans: int) -> np.ndarray:
        """Return a bool mask over the plans; rows that workers left behind are journalled first."""
        self._mend_journal()
        done = np.zeros(num_plans, dtype=bool)
        for line in self._lines():
            done[int(line[:_INDEX_DIGITS])] = True
        left = (index for index in self._left_behind() if not done[index])
        with ThreadPoolExecutor(_THREADS_FOR_OBJECTS) as pool:
            while indices := list(islice(left, _ROWS_AT_ONCE)):
                self.record(row for row in pool.map(self.committed, indices) if row is not None)
                done[indices] = True
        return done

    def rows(self) -> Iterator[Row]:
        """Yield one row a committed shard, in the order of their commits."""
        seen: set[int] = set()
        for line in self._lines():
            index = int(line[:_INDEX_DIGITS])
            if index not in seen:
                seen.add(index)
                yield json.loads(line[_INDEX_DIGITS + 1 :])

    def rows_of(self, indices: Collection[int]) -> Iterator[Row]:
        """Yield the rows of those of the shards that are committed; also before ``done`` was called."""
        journalled = set()
        for line in self._lines():
            index = int(line[:_INDEX_DIGITS])
            if index in indices and line.endswith(b"\n"):
                journalled.add(index)
                yield json.loads(line[_INDEX_DIGITS + 1 :])
        left = [index for index in indices if index not in journalled]
        with ThreadPoolExecutor(_THREADS_FOR_OBJECTS) as pool:
            yield from (row for row in pool.map(self.committed, left) if row is not None)

    def remove(self) -> None:
        """Delete the ledger; called once the manifest stands."""
        self._storage.remove_folder(self._root)

    def _left_behind(self) -> list[int]:
        """Return the shards whose rows lie beside the journal."""
        if not self._storage.exists(self._rows):
            return []
        names = (name for name, _ in self._storage.list_files(self._rows))
        return sorted(int(name[: -len(".json")]) for name in names if name[0] != "." and name.endswith(".json"))

    def _lines(self) -> Iterator[bytes]:
        if self._journal.exists():
            with self._journal.open("rb") as journal:
                yield from journal

    def _mend_journal(self) -> None:
        """Cut a line that a crash left half written; its shard's own row is still there."""
        if not self._journal.exists():
            return
        with self._journal.open("rb+") as journal:
            end = journal.seek(0, os.SEEK_END)
            while end:
                start = max(end - _TAIL_BYTES, 0)
                journal.seek(start)
                length = journal.read(end - start).rfind(b"\n") + 1
                end = start + length
                if length:
                    break
            journal.truncate(end)

    def _row_path(self, index: int) -> str:
        return f"{self._rows}/{index}.json"

    def _write(self, path: str, text: str) -> None:
        self._storage.write_atomically(path, lambda file: file.write(text.encode()))

    def _read(self, path: str) -> bytes:
        with self._storage.open_read(path) as file:
            return file.read()


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return (dotted name, old value, new value) of the first setting that differs, None if all agree."""
    return next(differences(old, new), None)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, old value, new value) of each setting that differs, by name."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}", before, after
