"""What a worker can say of a piece of input it has read: a digest of its stored bytes, its records, and its lines.

An edit that keeps a file's size is found by the digest (``documents.input_changes``); the lines let rejects of a file
that was cut by bytes be numbered from its beginning (``gpt_core.corpus.reject_lines``). Records are counted where they
are met, before anyone judges them: the manifest holds the documents kept and rejected against them.
"""

from dataclasses import dataclass

import xxhash

from gpt_core.documents.shard_plan import Piece
from gpt_core.storage import Storage, is_url

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PieceFacts:
    """xxh3_64 of a piece's stored bytes, None where it was not taken; its lines, None where none were counted; records.

    A record is what must become a document or a reject, and a place from which nothing more could be read.
    """

    digest: int | None
    num_lines: int | None
    num_records: int


class PieceWitness:
    """Watches a piece being read.

    Args:
        piece: Its bytes from ``start`` to ``end`` are digested, whatever part of them the reader needed.
    """

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self._position = piece.start
        self._end = piece.file.num_bytes if piece.end is None else piece.end
        self._digest = xxhash.xxh3_64()
        self.num_lines: int | None = None
        self.num_records = 0

    def saw(self, position: int, data: bytes) -> None:
        """Take note of stored bytes that the reader met at a position; what was met before is left out."""
        if position > self._position:
            self._read_up_to(position)
        known = self._position - position
        if known < len(data) and self._position < self._end:
            self._digest.update(memoryview(data)[known : self._end - position])
            self._position = min(position + len(data), self._end)

    def facts(self) -> PieceFacts:
        """Return what is known once the piece has been read; what the reader left out is read now.

        A table at a URL gets no digest: its reader fetches the columns it needs, and not the others for a digest.
        """
        if self._piece.file.format in {"parquet", "arrow"} and is_url(self._piece.file.path):
            return PieceFacts(None, None, self.num_records)
        self._read_up_to(self._end)
        return PieceFacts(self._digest.intdigest(), self.num_lines, self.num_records)

    def _read_up_to(self, position: int) -> None:
        position = min(position, self._end)
        if self._position >= position:
            return
        path = self._piece.file.path
        with Storage.of(path).open_read(path) as file:
            file.seek(self._position)
            while data := file.read(min(_READ_BYTES, position - self._position)):
                self._digest.update(data)
                self._position += len(data)
