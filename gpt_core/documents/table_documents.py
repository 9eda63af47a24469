"""Documents of parquet and Arrow files; positions are rows.

A row group or record batch i of n belongs to the piece that holds byte floor(i * size / n) of the file: whoever
plans need not open the file, and whoever reads needs its own part only.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_core.documents.arrow_batches import DAMAGED, ArrowBatches, first_line, sound
from gpt_core.documents.byte_stream import ByteStream, RawFile
from gpt_core.documents.document_batch import DocumentBatch, ReadingOptions, Reject
from gpt_core.documents.piece_witness import PieceWitness
from gpt_core.documents.shard_plan import Piece
from gpt_core.documents.text_documents import invalid_utf8, too_long
from gpt_core.storage import is_url

_COPY_BYTES = 1 << 20
_MAX_ROWS = 4096


def read_parquet(piece: Piece, reading: ReadingOptions, witness: PieceWitness) -> Iterator[DocumentBatch]:
    """Yield the texts of the piece's row groups; a damaged group or file is one reject."""
    rows = _Rows(piece, reading, witness)
    if piece.file.compression:
        packed = f"found {piece.file.compression} around a parquet file"
        yield rows.rejected(range(1), f"{packed}; expected the plain file, whose columns may be compressed")
        return
    with RawFile(piece.file) as raw:
        try:
            parquet = pq.ParquetFile(pa.PythonFile(raw, "r"), buffer_size=_COPY_BYTES, pre_buffer=False)
            fault = rows.fault_of(parquet.schema_arrow.names)
        except DAMAGED as error:
            yield from rows.unreadable_file(error)
            return
        first_row = 0
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            if _owns(piece, group, parquet.num_row_groups):
                if fault:
                    yield from rows.all_rejected(first_row, num_rows, fault)
                else:
                    yield from _row_group(rows, parquet, group, first_row)
            first_row += num_rows


def read_arrow(piece: Piece, reading: ReadingOptions, witness: PieceWitness) -> Iterator[DocumentBatch]:
    """Yield the texts of the piece's record batches (file or stream format); a damaged batch or file is one reject."""
    rows = _Rows(piece, reading, witness)
    with contextlib.ExitStack() as stack:
        try:
            batches = ArrowBatches(stack.enter_context(_opened(piece)), piece.file.text_field)
        except DAMAGED as error:
            yield from rows.unreadable_file(error)
            return
        first_row, count = 0, len(batches.num_rows) + bool(batches.damage)
        for index, num_rows in enumerate(batches.num_rows):
            if _owns(piece, index, count):
                yield from _record_batch(rows, batches, index, first_row)
            first_row += num_rows
        if batches.damage and _owns(piece, count - 1, count):
            yield rows.unreadable(first_row, batches.damage)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Makes documents and rejects of a table's rows, and tells the witness how many there were."""

    piece: Piece
    reading: ReadingOptions
    witness: PieceWitness

    def fault_of(self, names: list[str]) -> str | None:
        """Return why no row can be a document, judged by the names of the table's columns."""
        name = self.piece.file.text_field
        if (count := names.count(name)) > 1:
            return f"found {count} columns {name!r}; expected one"
        found = ", ".join(names[:8])[:200]
        return None if count else f"found no column {name!r} (columns: {found}); expected a column of texts"

    def documents(self, column: pa.Array, first_row: int) -> DocumentBatch:
        """Return the documents of one column's values, row by row."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not _is_bytes(column.type):
            reason = f"found {column.type} in {self.piece.file.text_field!r}; expected text"
            return self.rejected(range(first_row, first_row + len(column)), reason)
        self.witness.num_records += len(column)
        batch, file = DocumentBatch(), self.piece.file.name
        values = column.cast(pa.large_binary()).to_pylist()
        for row, value in enumerate(values, start=first_row):
            text, reason = _decoded(value, self.reading.max_document_bytes)
            if text:
                batch.add(text, file, row, row + 1)
                batch.num_bytes += len(value)
            else:
                batch.reject(file, None, row, reason)
        return batch

    def all_rejected(self, first_row: int, num_rows: int, reason: str) -> Iterator[DocumentBatch]:
        """Yield the rejects of many rows, some at a time."""
        for start in range(first_row, first_row + num_rows, _MAX_ROWS):
            yield self.rejected(range(start, min(start + _MAX_ROWS, first_row + num_rows)), reason)

    def rejected(self, rows: range, reason: str) -> DocumentBatch:
        """Return the rejects of some rows."""
        self.witness.num_records += len(rows)
        return DocumentBatch(rejects=[Reject(self.piece.file.name, None, row, reason) for row in rows])

    def unreadable(self, row: int, error: Exception | str) -> DocumentBatch:
        """Return the one reject of a damaged part."""
        reason = f"found unreadable data from row {row} ({first_line(error)})"
        return self.rejected(range(row, row + 1), f"{reason}; expected a whole {self.piece.file.format} file")

    def unreadable_file(self, error: Exception) -> Iterator[DocumentBatch]:
        """Yield the reject of a file of which nothing can be read; its first piece speaks for all."""
        if self.piece.start == 0:
            yield self.unreadable(0, error)


def _row_group(rows: _Rows, parquet: pq.ParquetFile, group: int, first_row: int) -> Iterator[DocumentBatch]:
    metadata = parquet.metadata.row_group(group)
    row_bytes = metadata.total_byte_size / max(metadata.num_rows, 1)
    num_rows = max(1, min(_MAX_ROWS, int(rows.reading.batch_bytes / max(row_bytes, 1))))
    name = rows.piece.file.text_field
    try:
        for part in parquet.iter_batches(num_rows, row_groups=[group], columns=[name], use_threads=False):
            yield rows.documents(sound(part.column(0)), first_row)
            first_row += part.num_rows
    except DAMAGED as error:
        yield rows.unreadable(first_row, error)


def _record_batch(rows: _Rows, batches: ArrowBatches, index: int, first_row: int) -> Iterator[DocumentBatch]:
    """Yield the texts of a record batch in steps that hold about ``batch_bytes``."""
    try:
        column = sound(batches.column(index))
    except DAMAGED as error:
        yield rows.unreadable(first_row, error)
        return
    if fault := rows.fault_of(batches.names):
        yield from rows.all_rejected(first_row, len(column), fault)
        return
    num_rows = max(1, min(_MAX_ROWS, int(len(column) * rows.reading.batch_bytes / max(column.nbytes, 1))))
    for start in range(0, len(column), num_rows):
        yield rows.documents(column[start : start + num_rows], first_row + start)


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return any(test(kind) for test in (types.is_binary, types.is_large_binary, types.is_binary_view))


def _decoded(value: bytes | None, limit: int) -> tuple[str, str]:
    """Return a row's text, or nothing and the reason."""
    if not value:
        return "", f"found {'null' if value is None else 'an empty text'}; expected at least one character"
    if len(value) > limit:
        return "", too_long(len(value), limit)
    try:
        return value.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return "", invalid_utf8(error)


def _owns(piece: Piece, index: int, count: int) -> bool:
    byte = index * piece.file.num_bytes // count
    return piece.start <= byte and (piece.end is None or byte < piece.end)


@contextlib.contextmanager
def _opened(piece: Piece) -> Iterator[pa.NativeFile]:
    """Yield a file for reading at any position: mapped, or fetched in part; a compressed one is unpacked first."""
    with RawFile(piece.file) as raw:  # checks presence and size
        if piece.file.compression:
            with _local_copy(piece) as path, pa.memory_map(path) as source:
                yield source
        elif is_url(piece.file.path):
            yield pa.PythonFile(raw, "r")
        else:
            with pa.memory_map(piece.file.path) as source:
                yield source


@contextlib.contextmanager
def _local_copy(piece: Piece) -> Iterator[str]:
    with ByteStream(piece.file) as stream, tempfile.NamedTemporaryFile(suffix=".arrow") as copy:
        while data := stream.read(_COPY_BYTES):
            copy.write(data)
        copy.flush()
        yield copy.name
