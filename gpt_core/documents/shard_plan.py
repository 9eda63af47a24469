"""How the input is cut into shards: a pure function of the files and one size, made without opening any.

A plan is the input of one shard. Big divisible files are cut into equal ranges of bytes; a document (or a row
group, or a record batch) belongs to the range in which it starts, so the reader finds the borders. Everything
else is packed in order, whole files to a shard, until the size is reached.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from gpt_core.digests import canonical_json
from gpt_core.documents.file_columns import FileColumns, FileKind, SourceFile


@dataclass(frozen=True, slots=True)
class Piece:
    """The documents of a file that start at byte ``start`` or after and before ``end`` (None: the file's end)."""

    file: SourceFile
    start: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The input of one shard, all of one source."""

    index: int
    source: str
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of input, as stored."""
        return sum((piece.file.num_bytes if piece.end is None else piece.end) - piece.start for piece in self.pieces)


class ShardPlans(Sequence[ShardPlan]):
    """All plans, kept as columns of numbers: 24 bytes for a shard that is one piece, besides its file's.

    Args:
        files: The input files in the order of their plans.
        shard_bytes: The size they were cut by.
        piece_files: int32 [pieces], each piece's file.
        piece_starts: int64 [pieces], the first byte.
        piece_ends: int64 [pieces], the byte past the last.
        first_pieces: int32 [plans + 1], where each plan's pieces begin.
    """

    def __init__(
        self,
        files: FileColumns,
        shard_bytes: int,
        *,
        piece_files: np.ndarray,
        piece_starts: np.ndarray,
        piece_ends: np.ndarray,
        first_pieces: np.ndarray,
    ) -> None:
        self.files = files
        self.shard_bytes = shard_bytes
        self._piece_files = piece_files
        self._piece_starts = piece_starts
        self._piece_ends = piece_ends
        self._first_pieces = first_pieces

    def __len__(self) -> int:
        return len(self._first_pieces) - 1

    @overload
    def __getitem__(self, index: int) -> ShardPlan: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardPlan]: ...
    def __getitem__(self, index: int | slice) -> ShardPlan | list[ShardPlan]:
        """Return a plan by its index."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"plan {index} of {len(self)}")
        first, last = int(self._first_pieces[number]), int(self._first_pieces[number + 1])
        pieces = tuple(self.piece(row) for row in range(first, last))
        return ShardPlan(number, pieces[0].file.source, pieces)

    @property
    def num_pieces(self) -> int:
        """Pieces of all plans; they are numbered in the order of the plans, and so of the files."""
        return len(self._piece_files)

    def first_piece(self, index: int) -> int:
        """Return the number of a plan's first piece."""
        return int(self._first_pieces[index])

    def plan_of(self, piece: int) -> int:
        """Return the plan that a piece belongs to."""
        return int(np.searchsorted(self._first_pieces, piece, side="right")) - 1

    def file_of(self, piece: int) -> int:
        """Return the number of the file that a piece is part of."""
        return int(self._piece_files[piece])

    def in_mid_file(self, piece: int) -> bool:
        """Return whether a piece is another than the first of its file; it is then alone in its plan."""
        return bool(self._piece_starts[piece])

    def pieces_of(self, file: int) -> range:
        """Return the numbers of the pieces of a file."""
        # Of the column's own type: numpy would copy the column else, for every file.
        first, end = np.searchsorted(self._piece_files, np.array([file, file + 1], self._piece_files.dtype))
        return range(int(first), int(end))

    @property
    def num_bytes(self) -> int:
        """Bytes of all input, as stored."""
        return int((self._piece_ends - self._piece_starts).sum())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the plans: the files' names and sizes, how they are read, and the shard size."""
        digest = hashlib.sha256(canonical_json(["shard_bytes", self.shard_bytes]))
        begins = [b"\n" + canonical_json([kind.source])[:-1] + b"," for kind in self.files.kinds]
        ends = [b"," + canonical_json(_reading_of(kind))[1:] for kind in self.files.kinds]
        columns = (self.files.numbers.tolist(), self.files.names(), self.files.num_bytes.tolist())
        for kind, name, num_bytes in zip(*columns, strict=True):
            digest.update(begins[kind] + f"{json.dumps(name)},{num_bytes}".encode() + ends[kind])
        return digest.hexdigest()

    def piece(self, number: int) -> Piece:
        """Return a piece by its number."""
        file = self.files[self._piece_files[number]]
        start, end = int(self._piece_starts[number]), int(self._piece_ends[number])
        return Piece(file, start, end if end < file.num_bytes else None)


def plan_shards(files: Sequence[SourceFile], shard_bytes: int) -> ShardPlans:
    """Cut files into shards of about ``shard_bytes`` input bytes, in order; a shard holds one source only.

    A divisible file above the size becomes shards of its own, equal to within a byte. Other files share a shard
    until the next would take it above the size, so an indivisible file above it makes a larger shard.
    """
    files = files if isinstance(files, FileColumns) else FileColumns.of(files)
    sizes = files.num_bytes
    num_cuts = np.ones(len(files), np.int64)
    cut = np.array([kind.divisible for kind in files.kinds], bool)[files.numbers] & (sizes > shard_bytes)
    num_cuts[cut] = -(-sizes[cut] // shard_bytes)
    piece_files = np.repeat(np.arange(len(files), dtype=np.int32), num_cuts)
    ends_of_files = np.cumsum(num_cuts)
    numbers = np.arange(len(piece_files)) - np.repeat(ends_of_files - num_cuts, num_cuts)
    starts = _cut_at(numbers, sizes[piece_files], num_cuts[piece_files])
    ends = _cut_at(numbers + 1, sizes[piece_files], num_cuts[piece_files])
    opens = np.ones(len(piece_files), bool)
    packed = np.flatnonzero(~cut)
    opens[(ends_of_files - 1)[packed]] = np.fromiter(_openings(files, packed, shard_bytes), bool, len(packed))
    first_pieces = np.append(np.flatnonzero(opens), len(piece_files)).astype(np.int32)
    return ShardPlans(
        files,
        shard_bytes,
        piece_files=piece_files,
        piece_starts=starts,
        piece_ends=ends,
        first_pieces=first_pieces,
    )


def _reading_of(kind: FileKind) -> list[str | None]:
    """Return how documents are found in files of a kind, as it enters the fingerprint."""
    return [kind.format, kind.compression, kind.text_field, kind.separator]


def _cut_at(numbers: np.ndarray, sizes: np.ndarray, num_cuts: np.ndarray) -> np.ndarray:
    """Return floor(number * size / cuts) without overflow for sizes up to 2**63."""
    quotient, remainder = np.divmod(sizes, num_cuts)
    return numbers * quotient + numbers * remainder // num_cuts


def _openings(files: FileColumns, packed: np.ndarray, shard_bytes: int) -> Iterator[bool]:
    """Yield for each file that is not cut whether it opens a new shard."""
    filled, previous, previous_source = 0, None, None
    sources = [kind.source for kind in files.kinds]
    columns = (packed.tolist(), files.numbers[packed].tolist(), files.num_bytes[packed].tolist())
    for number, kind, num_bytes in zip(*columns, strict=True):
        continues = previous == number - 1 and previous_source == sources[kind]
        opens = not continues or filled + num_bytes > shard_bytes
        filled = num_bytes if opens else filled + num_bytes
        previous, previous_source = number, sources[kind]
        yield opens
