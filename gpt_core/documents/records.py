"""Cut a stream of bytes at a delimiter: in bulk, in bounded memory, from any byte of a file.

Delimiters are found from left to right and never overlap, from the file's first byte on. A reader that starts in
the middle finds the same borders as one that starts at the beginning.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gpt_core.documents.byte_stream import ByteStream
from gpt_core.documents.source_files import SourceFile

CHUNK_BYTES = 1 << 20
_WINDOW_BYTES = 1 << 12


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records, each a delimiter after the end of the one before; ``end`` is past the last delimiter."""

    start: int
    end: int
    records: list[bytes]


@dataclass(frozen=True, slots=True)
class Oversize:
    """A record too long to be held; it was read past."""

    start: int
    num_bytes: int


def split_records(stream: ByteStream, delimiter: bytes, start: int, limit_bytes: int) -> Iterator[Block | Oversize]:
    """Yield the records of a stream whose next byte is the file's byte ``start``.

    The last record needs no delimiter after it; when it is empty, or the stream is damaged there, it is left out.
    A record above the limit may still come inside a block, if it was in memory anyway.
    """
    rest, data = b"", stream.read(CHUNK_BYTES)
    while data:
        records = (rest + data).split(delimiter)
        num_bytes, rest = len(rest) + len(data), records.pop()
        if records:
            end = start + num_bytes - len(rest)
            yield Block(start, end, records)
            start = end
        if len(rest) <= limit_bytes + len(delimiter):
            data = stream.read(max(CHUNK_BYTES, len(rest)))  # growing reads: a long record is copied twice, not often
            continue
        skipped_bytes, data = _skip_record(stream, delimiter, rest)
        rest = b""
        if data is None:
            if not stream.damage:
                yield Oversize(start, skipped_bytes)
            return
        yield Oversize(start, skipped_bytes)
        start += skipped_bytes + len(delimiter)
        data = data or stream.read(CHUNK_BYTES)
    if rest and not stream.damage:
        yield Block(start, start + len(rest), [rest])


def first_record(file: SourceFile, delimiter: bytes, start: int, end: int | None) -> int | None:
    """Return where the first record starts that starts in [start, end), or None; in bounded memory."""
    if start == 0:
        return 0
    position = _scan_from(file, delimiter, start)
    window = b""
    with ByteStream(file, position) as stream:
        while (end is None or position < end) and (data := stream.read(_WINDOW_BYTES)):
            window += data
            found = 0
            while (index := window.find(delimiter, found)) >= 0:
                found = index + len(delimiter)
                if position + found >= start:
                    return position + found if end is None or position + found < end else None
            dropped = max(found, len(window) - len(delimiter) + 1)
            position, window = position + dropped, window[dropped:]
    return None


def _skip_record(stream: ByteStream, delimiter: bytes, begun: bytes) -> tuple[int, bytes | None]:
    """Read past the record that ``begun`` begins; return its length and the bytes read after its delimiter, or None."""
    overlap = len(delimiter) - 1
    num_bytes = len(begun)
    tail = begun[num_bytes - overlap :]
    while data := stream.read(CHUNK_BYTES):
        window = tail + data
        index = window.find(delimiter)
        if index >= 0:
            return num_bytes - len(tail) + index, window[index + len(delimiter) :]
        num_bytes += len(data)
        tail = window[len(window) - overlap :]
    return num_bytes, None


def _scan_from(file: SourceFile, delimiter: bytes, start: int) -> int:
    """Return a byte from which scanning finds every delimiter that ends at ``start`` or after.

    A delimiter such as two newlines can overlap itself: which pairs of a long run are delimiters depends on where
    the run begins. Then scanning starts at a byte that no occurrence reaches across.
    """
    size = len(delimiter)
    latest = max(start - size, 0)
    if not any(delimiter.endswith(delimiter[:length]) for length in range(1, size)):
        return latest
    occurrences = re.compile(b"(?=" + re.escape(delimiter) + b")")
    window_bytes = _WINDOW_BYTES
    while True:
        low = max(latest - window_bytes, 0)
        with ByteStream(file, low) as stream:
            window = stream.read(start - low)
        safe = latest
        for match in reversed(list(occurrences.finditer(window))):
            if safe - size < low + match.start() < safe:
                safe = low + match.start()
        if low == 0 or safe >= low + size - 1:
            return safe
        window_bytes *= 4
