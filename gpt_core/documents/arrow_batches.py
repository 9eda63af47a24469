"""The record batches of an Arrow file or stream: how many rows each has, and one column of those that are asked for.

Rows are counted from the batches' headers, so that a piece of a file decodes its own batches only, and a file at a URL
is fetched in part. A stream has no footer to find a batch by: what lies before one is decoded on the way. A file or
stream that was cut off keeps its whole batches. ``sound`` checks a column before its values are read.
"""

import contextlib
import struct

import pyarrow as pa

# What Arrow raises over damaged bytes: a name that is no UTF-8 is a ValueError, a size out of range an OverflowError,
# the early end of a stream a StopIteration.
DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, StopIteration)
_BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_FILE_MAGIC = b"ARROW1"
_FIRST_MESSAGE = 8  # of a file: the magic, padded
_CONTINUATION = 0xFFFFFFFF
_READ_BYTES = 4096  # a header of some columns, in one request
_RECORD_BATCH = 3  # MessageHeader of Arrow's Message.fbs


class ArrowBatches:
    """Record batches with one of their columns.

    Args:
        source: The file, for reading at any position.
        column: Name of the column to read; the first one is read where there is none of this name.

    Raises:
        pa.ArrowException: Nothing of it can be read.
    """

    def __init__(self, source: pa.NativeFile, column: str) -> None:
        self._source = source
        self.damage: str | None = None
        """Why there may have been more batches than there are; None where the file is whole."""
        self.num_rows: list[int] = []
        """Rows of each whole batch."""
        self._stream: pa.ipc.RecordBatchStreamReader | None = None
        self._num_streamed = 0
        try:
            self._first_message, self.names = _FIRST_MESSAGE, pa.ipc.open_file(source).schema.names
            self._file = pa.ipc.open_file(source, options=self._only(column))
        except pa.ArrowInvalid as error:  # both of Arrow's formats carry the same suffixes in the wild
            self._file = None
            source.seek(0)
            has_magic = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
            self.damage = str(error).splitlines()[0] if has_magic else None
            self._first_message = _FIRST_MESSAGE if has_magic else 0
            self.names: list[str] = self._opened_stream().schema.names
            self._options = self._only(column)
        self._count_rows()

    def column(self, index: int) -> pa.Array:
        """Return the column of a batch; of a stream, batches are asked for in their order."""
        if self._file is not None:
            return self._file.get_batch(index).column(0)
        if self._stream is None:
            self._stream = self._opened_stream(self._options)
        while self._num_streamed < index:
            self._num_streamed += 1  # Arrow passes a damaged batch too; the piece that owns it rejects it
            with contextlib.suppress(*DAMAGED):
                self._stream.read_next_batch()
        self._num_streamed += 1
        return self._stream.read_next_batch().column(0)

    def _only(self, column: str) -> pa.ipc.IpcReadOptions:
        number = self.names.index(column) if column in self.names else 0
        return pa.ipc.IpcReadOptions(included_fields=[number])

    def _opened_stream(self, options: pa.ipc.IpcReadOptions | None = None) -> pa.ipc.RecordBatchStreamReader:
        self._source.seek(self._first_message)
        return pa.ipc.open_stream(self._source, options=options)

    def _count_rows(self) -> None:
        """Walk over the messages without their bodies."""
        position, end = self._first_message, self._source.size()
        try:
            while (found := self._message(position)) is not None:
                kind, num_rows, position = found
                if position > end:
                    self.damage = f"a record batch ends at byte {position} of {end}"
                    return
                if kind == _RECORD_BATCH:
                    self.num_rows.append(num_rows)
        except struct.error:
            self.damage = f"no header of a record batch at byte {position}"

    def _message(self, position: int) -> tuple[int, int, int] | None:
        """Return kind, rows and end of the message at a byte, or None at the end of the messages."""
        left_bytes = self._source.size() - position
        if left_bytes == 0:
            return None
        self._source.seek(position)
        data, start = self._source.read(min(_READ_BYTES, left_bytes)), 4
        (num_bytes,) = struct.unpack_from("<I", data)
        if num_bytes == _CONTINUATION:  # absent before Arrow 0.15
            (num_bytes,) = struct.unpack_from("<I", data, 4)
            start = 8
        if num_bytes == 0:
            return None
        if start + num_bytes > len(data):
            data += self._source.read(min(start + num_bytes, left_bytes) - len(data))
        kind, num_rows, body_bytes = _described(data[start : start + num_bytes])
        return kind, num_rows, position + start + num_bytes + body_bytes


def sound(column: pa.Array) -> pa.Array:
    """Return a column whose offsets and indices have been checked, its texts as bytes.

    Arrow trusts them as they were stored: over one flipped bit it would read other memory, or end the process. As
    texts it would check them too, and refuse them all where one is no UTF-8.

    Raises:
        pa.ArrowException: One of them lies outside its data.
    """
    if pa.types.is_dictionary(column.type):
        column = pa.DictionaryArray.from_arrays(column.indices, _as_bytes(column.dictionary), safe=False)
    column = _as_bytes(column)
    column.validate(full=True)
    return column


def first_line(error: Exception | str) -> str:
    """Return what Arrow says of damage, short enough for the reason of a reject."""
    return [*str(error).splitlines(), ""][0][:200]


def _as_bytes(column: pa.Array) -> pa.Array:
    kind = _BINARY.get(column.type)
    return column.view(kind) if kind else column


def _described(header: bytes) -> tuple[int, int, int]:
    """Return kind, rows and bytes of the body from a flatbuffer ``Message`` (Arrow's Message.fbs).

    Fields by number: header_type 1, header 2, bodyLength 3; of a RecordBatch: length 0.
    """
    message = struct.unpack_from("<I", header, 0)[0]
    kind, body_bytes = _field(header, message, 1, "<B"), _field(header, message, 3, "<q")
    num_rows = 0
    if kind == _RECORD_BATCH and (place := _place(header, message, 2)):
        num_rows = _field(header, place + struct.unpack_from("<I", header, place)[0], 0, "<q")
    if body_bytes < 0 or num_rows < 0:
        raise struct.error
    return kind, num_rows, body_bytes


def _field(data: bytes, table: int, number: int, kind: str) -> int:
    place = _place(data, table, number)
    return struct.unpack_from(kind, data, place)[0] if place else 0


def _place(data: bytes, table: int, number: int) -> int | None:
    """Return where a field of a flatbuffer's table lies, None where it has its default."""
    (back,) = struct.unpack_from("<i", data, table)
    offsets = table - back
    if offsets < 0:
        raise struct.error
    (num_bytes,) = struct.unpack_from("<H", data, offsets)
    if 4 + 2 * number >= num_bytes:
        return None
    (offset,) = struct.unpack_from("<H", data, offsets + 4 + 2 * number)
    return table + offset if offset else None
