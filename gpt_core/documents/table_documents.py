"""Documents of parquet and Arrow files; positions are rows.

A row group or record batch i of n belongs to the piece that holds byte floor(i * size / n) of the file: whoever
plans need not open the file, and whoever reads needs its own part only.
"""

import contextlib
import tempfile
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_core.documents.byte_stream import ByteStream, RawFile
from gpt_core.documents.document_batch import DocumentBatch, ReadingOptions, Reject
from gpt_core.documents.shard_plan import Piece
from gpt_core.documents.text_documents import invalid_utf8, too_long
from gpt_core.storage import is_url

_DAMAGED = (pa.ArrowException, OSError)
_COPY_BYTES = 1 << 20
_MAX_ROWS = 4096


def read_parquet(piece: Piece, reading: ReadingOptions) -> Iterator[DocumentBatch]:
    """Yield the texts of the piece's row groups; a damaged group or file is one reject."""
    with RawFile(piece.file) as raw:
        try:
            parquet = pq.ParquetFile(pa.PythonFile(raw, "r"), buffer_size=_COPY_BYTES, pre_buffer=False)
        except _DAMAGED as error:
            yield from _unreadable(piece, 0, error)
            return
        first_row = 0
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            if _owns(piece, group, parquet.num_row_groups):
                yield from _row_group(piece, reading, parquet, group, first_row)
            first_row += num_rows


def read_arrow(piece: Piece, reading: ReadingOptions) -> Iterator[DocumentBatch]:
    """Yield the texts of the piece's record batches (file or stream format); a damaged file is one reject."""
    with contextlib.ExitStack() as stack:
        path = piece.file.path if _maps(piece) else stack.enter_context(_local_copy(piece))
        try:
            RawFile(piece.file).close()  # the checks of presence and size
            batches = _record_batches(stack.enter_context(pa.memory_map(path)))
        except _DAMAGED as error:
            yield from _unreadable(piece, 0, error)
            return
        first_row = 0
        for index, rows in enumerate(batches):
            if _owns(piece, index, len(batches)):
                yield from _rows(piece, reading, rows, first_row)
            first_row += rows.num_rows


def _row_group(
    piece: Piece, reading: ReadingOptions, parquet: pq.ParquetFile, group: int, first_row: int
) -> Iterator[DocumentBatch]:
    name = piece.file.text_field
    metadata = parquet.metadata.row_group(group)
    names = parquet.schema_arrow.names
    if name not in names:
        yield from _missing_field(piece, names, first_row, metadata.num_rows)
        return
    row_bytes = metadata.total_byte_size / max(metadata.num_rows, 1)
    num_rows = max(1, min(_MAX_ROWS, int(reading.batch_bytes / max(row_bytes, 1))))
    try:
        for rows in parquet.iter_batches(num_rows, row_groups=[group], columns=[name], use_threads=False):
            yield _column(piece, reading, rows.column(0), first_row)
            first_row += rows.num_rows
    except _DAMAGED as error:
        yield from _unreadable(piece, first_row, error)


def _rows(piece: Piece, reading: ReadingOptions, rows: pa.RecordBatch, first_row: int) -> Iterator[DocumentBatch]:
    """Yield the texts of a record batch in steps that hold about ``batch_bytes``."""
    name = piece.file.text_field
    if name not in rows.schema.names:
        yield from _missing_field(piece, rows.schema.names, first_row, rows.num_rows)
        return
    column = rows.column(name)
    num_rows = max(1, min(_MAX_ROWS, int(rows.num_rows * reading.batch_bytes / max(column.nbytes, 1))))
    for start in range(0, rows.num_rows, num_rows):
        yield _column(piece, reading, column[start : start + num_rows], first_row + start)


def _column(piece: Piece, reading: ReadingOptions, column: pa.Array, first_row: int) -> DocumentBatch:
    """Return the documents of one column's values, row by row."""
    batch, file = DocumentBatch(), piece.file.name
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_text(column.type):
        reason = f"found {column.type} in {piece.file.text_field!r}; expected text"
        batch.rejects = [Reject(file, None, row, reason) for row in range(first_row, first_row + len(column))]
        return batch
    values = column.cast(pa.large_binary()).to_pylist()  # as bytes: Arrow does not check that strings are UTF-8
    for row, value in enumerate(values, start=first_row):
        text, reason = _decoded(value, reading.max_document_bytes)
        if text:
            batch.add(text, file, row, row + 1)
            batch.num_bytes += len(value)
        else:
            batch.reject(file, None, row, reason)
    return batch


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


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_string_view)
    return any(test(kind) for test in tests)


def _missing_field(piece: Piece, names: list[str], first_row: int, num_rows: int) -> Iterator[DocumentBatch]:
    file, found = piece.file, ", ".join(names[:8])[:200]
    reason = f"found no column {file.text_field!r} (columns: {found}); expected a column of texts"
    for start in range(first_row, first_row + num_rows, _MAX_ROWS):
        last = min(start + _MAX_ROWS, first_row + num_rows)
        yield DocumentBatch(rejects=[Reject(file.name, None, row, reason) for row in range(start, last)])


def _unreadable(piece: Piece, row: int, error: Exception) -> Iterator[DocumentBatch]:
    """Yield the reject of a damaged part; where nothing can be read, the file's first piece speaks for all."""
    if row or piece.start == 0:
        reason = f"found unreadable data from row {row} ({str(error).splitlines()[0][:200]})"
        kind = f"a whole {piece.file.format} file"
        yield DocumentBatch(rejects=[Reject(piece.file.name, None, row, f"{reason}; expected {kind}")])


def _owns(piece: Piece, index: int, count: int) -> bool:
    byte = index * piece.file.num_bytes // count
    return piece.start <= byte and (piece.end is None or byte < piece.end)


def _record_batches(mapped: pa.MemoryMappedFile) -> list[pa.RecordBatch]:
    """Return all record batches without copying; both of Arrow's formats carry the same suffixes in the wild."""
    try:
        reader = pa.ipc.open_file(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        return list(pa.ipc.open_stream(mapped))
    return [reader.get_batch(index) for index in range(reader.num_record_batches)]


def _maps(piece: Piece) -> bool:
    return piece.file.compression is None and not is_url(piece.file.path)


@contextlib.contextmanager
def _local_copy(piece: Piece) -> Iterator[str]:
    """Copy what cannot be mapped, remote or compressed, to a temporary file; yield its path."""
    with ByteStream(piece.file) as stream, tempfile.NamedTemporaryFile(suffix=".arrow") as copy:
        while data := stream.read(_COPY_BYTES):
            copy.write(data)
        copy.flush()
        yield copy.name
