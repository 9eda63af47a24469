"""The bytes of a source file, decompressed, from any start; damage to a compressed file ends the stream.

A cut-off or corrupt gzip or zstd file is bad input, which must not stop a job: the stream gives every byte that
can still be decoded, then ends with ``damage`` saying why. A disk or network that fails is not bad input: it
raises, so that the shard is tried again.
"""

import io
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pyarrow as pa

from gpt_core.documents.source_files import SourceFile
from gpt_core.errors import CorpusError, RunFailedError
from gpt_core.storage import Storage

Seen = Callable[[int, bytes], None]
"""Told of stored bytes as they are read: their position and they."""


_NOT_THERE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class RawFile(io.RawIOBase):
    """A source file's stored bytes; what goes wrong below it is an error of the run, not of the input.

    Raises:
        CorpusError: The file is not there, may not be read, or is not of the size it was planned with.
        RunFailedError: Opening or reading it failed.
    """

    def __init__(self, file: SourceFile, seen: Seen | None = None) -> None:
        super().__init__()
        self.path = file.path
        self._seen = seen
        storage = Storage.of(file.root)
        try:
            self._file = storage.open_read(file.path)
            num_bytes = self._file.seek(0, io.SEEK_END)
            self._file.seek(0)
        except _NOT_THERE as error:
            reason = error.strerror or str(error)
            raise CorpusError(
                file.path, reason, "the file that was planned", "restore it, or make it readable, and run again"
            ) from error
        except OSError as error:
            raise _unreachable(file.path, error) from error
        if num_bytes != file.num_bytes:
            self._file.close()
            found = f"{num_bytes} bytes"
            raise CorpusError(file.path, found, f"{file.num_bytes} as planned", "leave the input alone, and run again")

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte and return its position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, fewer at the end only."""
        try:
            position = self._file.tell()
            data = self._file.read(size)
        except OSError as error:
            raise _unreachable(f"{self.path}, byte {self.tell()}", error) from error
        if self._seen is not None:
            self._seen(position, data)
        return data

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


def _unreachable(where: str, error: OSError) -> RunFailedError:
    return RunFailedError(where, str(error), "readable bytes", "check the disk or network, run again")


class ByteStream:
    """Reads a source file forward; a context manager.

    Args:
        file: What to read.
        start: The first byte; above 0 for files that are not compressed only.
        seen: Told of the stored bytes as they are read.
    """

    def __init__(self, file: SourceFile, start: int = 0, seen: Seen | None = None) -> None:
        assert file.compression is None or start == 0
        self._file = file
        self._raw = RawFile(file, seen)
        self._raw.seek(start)
        self._stream = self._decompressed()
        self._num_decoded_bytes = 0
        self.damage: str | None = None
        """Why the stream ended before the file's true end; None while it is sound."""

    def read(self, num_bytes: int) -> bytes:
        """Return the next bytes; fewer than asked for, or none, at the end only."""
        if self.damage:
            return b""
        if self._stream is None:
            return self._raw.read(num_bytes)
        try:
            data = self._stream.read(num_bytes)
        except (OSError, pa.ArrowException) as error:
            data = self._salvage(num_bytes)
            self.damage = f"found a damaged {self._file.compression} stream ({error}); expected a whole one"
        self._num_decoded_bytes += len(data)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    def _decompressed(self) -> pa.CompressedInputStream | None:
        if self._file.compression is None or self._file.num_bytes == 0:
            return None
        return pa.CompressedInputStream(pa.PythonFile(self._raw, "r"), self._file.compression)

    def _salvage(self, num_bytes: int) -> bytes:
        """Decode again up to the damage: the failed read kept the good bytes before it to itself."""
        self._raw = RawFile(self._file)
        stream = self._decompressed()
        assert stream is not None
        for left in range(self._num_decoded_bytes, 0, -(1 << 20)):
            stream.read(min(left, 1 << 20))
        found = bytearray()
        try:
            while len(found) < num_bytes:
                found += stream.read(1)
        except (OSError, pa.ArrowException):
            return bytes(found)
        raise AssertionError("a stream that was damaged is whole when read again")
