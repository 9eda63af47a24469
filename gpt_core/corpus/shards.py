"""Shard files: Arrow IPC, one row a document, written once and read through a memory map.

The tokenizing worker writes them, trainers, the tracer and the verifier read them. Invariants:
the bytes of a shard depend on its documents alone, never on how they were handed over or on the
machine; a file that carries a shard's name is whole, because it gets the name last.
"""

import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import xxhash

from gpt_core.digests import row_checksums
from gpt_core.errors import CorpusError
from gpt_core.storage import Storage, is_url, sync_folder

BATCH_TOKENS = 1 << 20  # 2 MiB of uint16 tokens: a read-ahead unit, and the grain at which damage is named
MAX_LIST_TOKENS = (1 << 31) - 1  # a list column counts its tokens in int32


@dataclass(frozen=True, slots=True)
class ShardStats:
    """What a written shard holds; every field is plain, so ``dataclasses.asdict`` is JSON.

    Batch i covers the file's bytes from the end of batch i - 1 (0 for the first) to
    ``batch_end_bytes[i]``; what follows the last is Arrow's end mark and footer.
    """

    num_documents: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    xxh3_128: str = ""
    batch_digests: tuple[int, ...] = ()
    batch_end_bytes: tuple[int, ...] = ()
    batch_documents: tuple[int, ...] = ()
    batch_tokens: tuple[int, ...] = ()


def shard_schema(dtype: np.dtype | type, *, with_prompts: bool = False) -> pa.Schema:
    """Return the columns of a shard whose token ids have this type (uint16 or uint32).

    With prompts, as in a corpus of supervised examples, the last column is how many tokens of a row are its prompt.
    """
    columns = [
        ("tokens", pa.list_(pa.from_numpy_dtype(dtype))),
        ("file", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("checksum", pa.uint32()),
    ]
    return pa.schema(columns + [("prompt_tokens", pa.int32())] * with_prompts)


def with_end_of_text(tokens: np.ndarray, offsets: np.ndarray, end_of_text: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents with the end-of-text id appended to each.

    Args:
        tokens: Flat ids of n documents.
        offsets: int64 [n + 1] into ``tokens``, from 0.
        end_of_text: The id to append.
    """
    num_documents = len(offsets) - 1
    ends = offsets[1:] + np.arange(num_documents)
    flat = np.empty(len(tokens) + num_documents, tokens.dtype)
    is_token = np.ones(len(flat), bool)
    is_token[ends] = False
    flat[is_token] = tokens
    flat[ends] = end_of_text
    return flat, offsets + np.arange(num_documents + 1)


class _HashedFile:
    """A write-only file that takes the digests of what passes through it; Arrow's sink."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._file_digest = xxhash.xxh3_128()
        self._batch_digest = xxhash.xxh3_64()
        self.num_bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._file_digest.update(data)
        self._batch_digest.update(data)
        self.num_bytes += len(data)
        return len(data)

    def take_batch_digest(self) -> int:
        value = self._batch_digest.intdigest()
        self._batch_digest.reset()
        return value

    def hexdigest(self) -> str:
        return self._file_digest.hexdigest()

    def tell(self) -> int:
        return self.num_bytes

    def flush(self) -> None:
        self._file.flush()

    def sync_and_close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def close(self) -> None:
        self.closed = True
        self._file.close()


@dataclass(slots=True)
class _Chunk:
    """Consecutive documents waiting for their batch: flat ids, offsets from 0, where each came from."""

    tokens: np.ndarray
    offsets: np.ndarray
    files: Sequence[str]
    starts: Sequence[int]
    ends: Sequence[int]
    prompt_tokens: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def slice(self, first: int, last: int) -> "_Chunk":
        low, high = int(self.offsets[first]), int(self.offsets[last])
        offsets = self.offsets[first : last + 1] - low
        where = slice(first, last)
        prompts = None if self.prompt_tokens is None else self.prompt_tokens[where]
        return _Chunk(self.tokens[low:high], offsets, self.files[where], self.starts[where], self.ends[where], prompts)


def _batch_of(chunks: Sequence[_Chunk], schema: pa.Schema) -> pa.RecordBatch:
    tokens = np.concatenate([chunk.tokens for chunk in chunks])
    if len(tokens) > MAX_LIST_TOKENS:
        found = f"{len(tokens)} tokens"
        raise CorpusError("record batch", found, f"at most {MAX_LIST_TOKENS}", "lower the limit on document size")
    lengths = np.concatenate([np.diff(chunk.offsets) for chunk in chunks])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    columns = [
        pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(tokens)),
        pa.array([name for chunk in chunks for name in chunk.files], pa.string()),
        pa.array(np.concatenate([np.asarray(chunk.starts, np.int64) for chunk in chunks])),
        pa.array(np.concatenate([np.asarray(chunk.ends, np.int64) for chunk in chunks])),
        pa.array(row_checksums(tokens, offsets)),
    ]
    if "prompt_tokens" in schema.names:
        columns.append(pa.array([count for chunk in chunks for count in chunk.prompt_tokens or ()], pa.int32()))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class ShardWriter:
    """Writes one shard; a context manager that abandons the file on an exception.

    ``append`` buffers documents up to about one batch of tokens, so memory is bounded by one batch
    and one call's input. Nothing bears the shard's name before ``close`` has written and fsynced
    every byte, or, for a URL, uploaded a local temporary file. A writer that got no document leaves no file.

    Args:
        path: Where the shard shall lie, a path or a URL; its folder is made if absent.
        dtype: Type of the token ids, uint16 or uint32.
        with_prompts: See ``shard_schema``.
    """

    def __init__(self, path: str | Path, dtype: np.dtype | type, *, with_prompts: bool = False) -> None:
        self._url = str(path) if is_url(str(path)) else None
        self._path = Path(tempfile.gettempdir(), Path(path).name) if self._url else Path(path)
        self._temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}.tmp")
        self._dtype = np.dtype(dtype)
        self._schema = shard_schema(self._dtype, with_prompts=with_prompts)
        self._sink: _HashedFile | None = None
        self._arrow: pa.RecordBatchFileWriter | None = None
        self._waiting: list[_Chunk] = []
        self._num_waiting_tokens = 0
        self._batches: list[tuple[int, int, int, int]] = []  # digest, end byte, documents, tokens

    def append(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        files: Sequence[str],
        starts: Sequence[int],
        ends: Sequence[int],
        prompt_tokens: Sequence[int] | None = None,
    ) -> None:
        """Add documents in order; full batches go to disk.

        Args:
            tokens: Flat ids of the writer's dtype, end of text already last in each document.
            offsets: int64 [n + 1] into ``tokens``.
            files: Source file of each document.
            starts: First byte (or row) of each document in its file.
            ends: Byte (or row) past the end of each document.
            prompt_tokens: Tokens of each document's prompt, for a shard with prompts.
        """
        if tokens.dtype != self._dtype:
            raise TypeError(f"tokens are {tokens.dtype}, the shard holds {self._dtype}")
        chunk = _Chunk(tokens, np.asarray(offsets, np.int64), files, starts, ends, prompt_tokens)
        first = 0
        while first < len(chunk):
            last = self._end_of_batch(chunk, first)
            self._hold(chunk.slice(first, last))
            if self._num_waiting_tokens >= BATCH_TOKENS:
                self._write_batch()
            first = last

    def close(self) -> ShardStats:
        """Write what is left, make the file durable under its name, and return its stats."""
        if self._waiting:
            self._write_batch()
        if self._sink is None or self._arrow is None:
            return ShardStats()
        self._arrow.close()
        self._sink.sync_and_close()
        self._publish()
        digests, end_bytes, documents, tokens = zip(*self._batches, strict=True)
        totals = (sum(documents), sum(tokens), self._sink.num_bytes, self._sink.hexdigest())
        return ShardStats(*totals, digests, end_bytes, documents, tokens)

    def abandon(self) -> None:
        """Remove whatever was written so far, also on a disk that takes no more."""
        if self._sink is not None:
            self._temporary.unlink(missing_ok=True)
            with suppress(OSError):  # of what closing would write, nothing is wanted
                self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()

    def _end_of_batch(self, chunk: _Chunk, first: int) -> int:
        """Return the document after which the batch holds BATCH_TOKENS or more, or the chunk's end."""
        wanted = int(chunk.offsets[first]) + BATCH_TOKENS - self._num_waiting_tokens
        return min(int(np.searchsorted(chunk.offsets, wanted, side="left")), len(chunk))

    def _hold(self, chunk: _Chunk) -> None:
        # The caller may reuse its arrays, and a view would keep all of a large input alive.
        chunk.tokens = chunk.tokens.copy()
        self._waiting.append(chunk)
        self._num_waiting_tokens += len(chunk.tokens)

    def _write_batch(self) -> None:
        sink, arrow = self._opened()
        batch = _batch_of(self._waiting, self._schema)
        arrow.write_batch(batch)
        numbers = (sink.take_batch_digest(), sink.num_bytes, batch.num_rows, self._num_waiting_tokens)
        self._batches.append(numbers)
        self._waiting.clear()
        self._num_waiting_tokens = 0

    def _publish(self) -> None:
        if self._url is None:
            self._temporary.replace(self._path)
            sync_folder(self._path.parent)
            return
        with self._temporary.open("rb") as source:
            Storage.of(self._url).write_atomically(self._url, functools.partial(shutil.copyfileobj, source))
        self._temporary.unlink()

    def _opened(self) -> tuple[_HashedFile, pa.RecordBatchFileWriter]:
        if self._sink is None or self._arrow is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = _HashedFile(self._temporary)
            self._arrow = pa.ipc.new_file(self._sink, self._schema)
        return self._sink, self._arrow


@dataclass(frozen=True, slots=True)
class ShardDocument:
    """One row of a shard: ``tokens`` is a view into the mapped file, end of text included."""

    tokens: np.ndarray
    file: str
    start: int
    end: int
    checksum: int


class ShardReader:
    """Reads one shard through a memory map; arrays are views of it, no bytes are copied.

    A shard at a URL is read by record batch, each fetched when it is asked for.

    Args:
        path: A shard file, or its URL.
        batch_tokens: Tokens of each record batch, if the caller knows them (the manifest does);
            without them the reader visits every batch's header once, when first asked.

    Raises:
        CorpusError: The file is absent or is no Arrow file.
    """

    def __init__(self, path: str | Path, batch_tokens: np.ndarray | None = None) -> None:
        self.path = str(path)
        try:
            self._source = self._opened()
            self._file = pa.ipc.open_file(self._source)
        except (OSError, pa.ArrowInvalid) as error:
            remedy = "run `herd verify` on the corpus, then make the damaged part again"
            raise CorpusError(self.path, str(error).splitlines()[0], "a whole Arrow IPC file", remedy) from error
        self._token_ends = None if batch_tokens is None else np.concatenate([[0], np.cumsum(batch_tokens)])

    @property
    def num_batches(self) -> int:
        """Number of record batches."""
        return self._file.num_record_batches

    @property
    def dtype(self) -> np.dtype:
        """Type of the token ids."""
        return np.dtype(self._file.schema.field("tokens").type.value_type.to_pandas_dtype())

    @property
    def token_bounds(self) -> np.ndarray:
        """int64 [num_batches + 1]: batch i holds the shard's tokens from bound i to bound i + 1."""
        if self._token_ends is None:
            counts = [len(self.batch_tokens(index)) for index in range(self.num_batches)]
            self._token_ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return self._token_ends

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole shard, end-of-text ids included."""
        return int(self.token_bounds[-1])

    def batch(self, index: int) -> pa.RecordBatch:
        """Return one record batch, a view of the mapped file."""
        return self._file.get_batch(index)

    def batch_tokens(self, index: int) -> np.ndarray:
        """Return the flat token ids of one record batch, a view of the mapped file."""
        return self.batch(index).column(0).values.to_numpy()

    def document_offsets(self, index: int) -> np.ndarray:
        """Return int32 [rows + 1], where each document of one batch starts in its tokens."""
        return self.batch(index).column(0).offsets.to_numpy()

    def tokens(self, start: int, count: int) -> np.ndarray:
        """Return ``count`` tokens of the shard's stream from ``start``; a view if one batch holds them."""
        bounds = self.token_bounds
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, start + count, side="left")) - 1
        if start < 0 or count < 0 or start + count > bounds[-1]:
            raise IndexError(f"{self.path}: tokens {start}..{start + count} of {bounds[-1]}")
        pieces = []
        for index in range(first, max(first, last) + 1):
            low, high = max(start - bounds[index], 0), start + count - bounds[index]
            pieces.append(self.batch_tokens(index)[low:high])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def document(self, batch: int, row: int) -> ShardDocument:
        """Return one document by record batch and row within it."""
        rows = self.batch(batch)
        offsets = rows.column(0).offsets
        low, high = offsets[row].as_py(), offsets[row + 1].as_py()
        file, start, end, checksum = (rows.column(column)[row].as_py() for column in range(1, 5))
        return ShardDocument(rows.column(0).values.to_numpy()[low:high], file, start, end, checksum)

    def close(self) -> None:
        """Let go of the map; arrays already handed out stay valid."""
        self._source.close()

    def _opened(self) -> pa.NativeFile | BinaryIO:
        if is_url(self.path):
            return Storage.of(self.path).open_read(self.path)
        return pa.memory_map(self.path)
