"""Source files as columns: a million of them in 60 bytes each, in the driver and in every worker that gets the plans.

A file is made into an object when it is asked for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, overload

import numpy as np

from gpt_core.storage import Storage

Format = Literal["text", "jsonl", "parquet", "arrow", "midi"]
Compression = Literal["gzip", "zstd"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file: where it lies, what it is called, and how documents are found in it."""

    source: str
    root: str
    name: str
    num_bytes: int
    format: Format
    compression: Compression | None = None
    text_field: str = "text"
    separator: str | None = None
    changed_ns: int = field(default=0, compare=False)
    """When it was last changed (``Storage.list_stats``); a hint that its contents may be others."""

    @property
    def path(self) -> str:
        """The path or URL to open."""
        return Storage.of(self.root).join(self.name)

    @property
    def divisible(self) -> bool:
        """Whether several shards may share the file: not a compressed stream, not a file that is one document."""
        return _divisible(self)


@dataclass(frozen=True, slots=True)
class FileKind:
    """What many files have in common: the fields of ``SourceFile`` that are not a file's own."""

    source: str
    root: str
    format: Format
    compression: Compression | None = None
    text_field: str = "text"
    separator: str | None = None

    @property
    def divisible(self) -> bool:
        """As of ``SourceFile``."""
        return _divisible(self)


class FileColumns(Sequence[SourceFile]):
    """Files in an order, kept as columns.

    Args:
        kinds: What files have in common.
        numbers: int32 [n], each file's kind.
        names: Their names.
        num_bytes: int64 [n], their sizes.
        changed_ns: int64 [n], when each was last changed.
    """

    def __init__(
        self,
        kinds: Sequence[FileKind],
        numbers: np.ndarray,
        names: Sequence[str],
        num_bytes: np.ndarray,
        changed_ns: np.ndarray,
    ) -> None:
        self.kinds = tuple(kinds)
        self.numbers = numbers
        self.num_bytes = num_bytes
        self.changed_ns = changed_ns
        self._names = "".join(names).encode("utf-8")
        lengths = np.fromiter((len(name.encode("utf-8")) for name in names), np.int64, len(names))
        self._name_ends = np.cumsum(lengths).astype(np.min_scalar_type(len(self._names)))

    @classmethod
    def of(cls, files: Iterable[SourceFile]) -> Self:
        """Return the columns of files."""
        files = tuple(files)
        numbers: dict[FileKind, int] = {}
        column = [numbers.setdefault(_kind_of(file), len(numbers)) for file in files]
        sizes = np.array([file.num_bytes for file in files], np.int64)
        times = np.array([file.changed_ns for file in files], np.int64)
        return cls(list(numbers), np.array(column, np.int32), [file.name for file in files], sizes, times)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the files of several columns one after the other."""
        if len(parts) == 1:
            return parts[0]
        firsts = np.cumsum([0, *(len(part.kinds) for part in parts)]).tolist()
        return cls(
            [kind for part in parts for kind in part.kinds],
            np.concatenate([part.numbers + first for part, first in zip(parts, firsts, strict=False)]).astype(np.int32),
            [name for part in parts for name in part.names()],
            np.concatenate([part.num_bytes for part in parts]),
            np.concatenate([part.changed_ns for part in parts]),
        )

    def taken(self, rows: np.ndarray) -> Self:
        """Return the files of these rows, in their order."""
        names = self.names()
        kept = [names[row] for row in rows.tolist()]
        return type(self)(self.kinds, self.numbers[rows], kept, self.num_bytes[rows], self.changed_ns[rows])

    def names(self) -> list[str]:
        """Return the names of all files."""
        ends = self._name_ends.tolist()
        return [self._names[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> SourceFile: ...
    @overload
    def __getitem__(self, index: slice) -> list[SourceFile]: ...
    def __getitem__(self, index: int | slice) -> SourceFile | list[SourceFile]:
        """Return a file by its index."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = int(index) + len(self) if index < 0 else int(index)
        if not 0 <= row < len(self):
            raise IndexError(f"file {index} of {len(self)}")
        kind = self.kinds[self.numbers[row]]
        start = int(self._name_ends[row - 1]) if row else 0
        name = self._names[start : int(self._name_ends[row])].decode()
        reading = (kind.format, kind.compression, kind.text_field, kind.separator)
        return SourceFile(kind.source, kind.root, name, int(self.num_bytes[row]), *reading, int(self.changed_ns[row]))


def _kind_of(file: SourceFile) -> FileKind:
    return FileKind(file.source, file.root, file.format, file.compression, file.text_field, file.separator)


def _divisible(file: SourceFile | FileKind) -> bool:
    whole = file.format == "midi" or (file.format == "text" and file.separator is None)
    return file.compression is None and not whole
