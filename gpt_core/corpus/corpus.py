"""A finished corpus as trainers read it: windows of tokens by source and number, straight from mapped shards.

Opening costs the manifest and one prefix sum a source; shards are mapped when a window first needs them
and at most ``max_open_shards`` stay mapped. A source is one stream, its documents in plan order: windows
run across the borders of documents and of shards.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow.compute import call_function

from gpt_core.corpus import manifest
from gpt_core.corpus.order import Cells, Integers, Order, SourceStream, num_windows
from gpt_core.corpus.shard_cache import HeldShard, RemoteShard, ShardCache
from gpt_core.corpus.shards import ShardReader
from gpt_core.errors import CorpusError
from gpt_core.storage import Storage, is_url

DEFAULT_OPEN_SHARDS = 256  # a map costs a file descriptor and address space, no memory of its own


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one shard; ``shard`` is its row in the manifest's table."""

    shard: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where windows begin: rows of the manifest's shard table, and tokens into those shards."""

    shards: Integers
    offsets: Integers


class SourceIndex:
    """The shards of one source of a split as one stream of tokens.

    Args:
        rows: Rows of the manifest's shard table, in plan order.
        num_tokens: Tokens of each.
    """

    def __init__(self, rows: Integers, num_tokens: Integers) -> None:
        self.rows = rows
        self.bounds = np.concatenate([[0], np.cumsum(num_tokens, dtype=np.int64)])

    @property
    def num_tokens(self) -> int:
        """Length of the stream."""
        return int(self.bounds[-1])

    def locate(self, starts: Integers) -> Coordinates:
        """Return the shard and the offset in it of each position of the stream."""
        places = np.searchsorted(self.bounds, starts, side="right") - 1
        return Coordinates(self.rows[places], starts - self.bounds[places])

    def shards_of(self, starts: Integers, count: int) -> Integers:
        """Return the shards, each once and rising, that hold ``count`` tokens from any of the positions."""
        first = np.searchsorted(self.bounds, starts, side="right") - 1
        last = np.searchsorted(self.bounds, starts + count, side="left") - 1
        widest = int((last - first).max()) + 1
        return self.rows[np.unique([np.minimum(first + place, last) for place in range(widest)])]

    def spans(self, start: int, count: int) -> list[Span]:
        """Return the pieces of shards that make up part of the stream, in order; empty ones left out."""
        first = int(np.searchsorted(self.bounds, start, side="right")) - 1
        last = int(np.searchsorted(self.bounds, start + count, side="left"))
        spans = []
        for place in range(first, last):
            low = max(start, int(self.bounds[place]))
            high = min(start + count, int(self.bounds[place + 1]))
            if high > low:
                spans.append(Span(int(self.rows[place]), low - int(self.bounds[place]), high - low))
        return spans


class Corpus:
    """One split of a finished corpus; for one thread of one process at a time.

    Args:
        folder: Folder or URL of the corpus.
        split: "train", "validation" or another split of the manifest.
        max_open_shards: Shards kept mapped at once.
        cache: Gets copies of the shards of a corpus in an object store, which are then read from there.

    Raises:
        CorpusError: No finished corpus lies there, it is damaged, or it has no such split.
    """

    def __init__(
        self,
        folder: str,
        split: str = "train",
        max_open_shards: int = DEFAULT_OPEN_SHARDS,
        cache: ShardCache | None = None,
    ) -> None:
        self.folder = folder
        self.split = split
        self.manifest = manifest.read(folder)
        if split not in self.manifest.splits:
            known = ", ".join(self.manifest.splits) or "no split"
            remedy = "name another, or tokenize with a larger --validation_fraction, or with --validation_tail"
            raise CorpusError(folder, f"no split {split!r}", f"one of: {known}", remedy)
        self.sources = tuple(self.manifest.weights)
        self.indexes = _indexes(self.manifest.shards, split, self.sources)
        self._max_open_shards = max_open_shards
        self.cache = cache if is_url(folder) else None
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._held: dict[int, HeldShard] = {}
        self._first_batches: Integers | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the split, end-of-text ids included."""
        return sum(index.num_tokens for index in self.indexes)

    def num_windows(self, window_tokens: int) -> int:
        """Return the windows of all sources together."""
        return sum(num_windows(index.num_tokens, window_tokens) for index in self.indexes)

    def order(
        self,
        seed: int,
        window_tokens: int,
        sequences_per_step: int,
        weights: Mapping[str, float] | None = None,
        block_windows: int | None = None,
    ) -> Order:
        """Return the order of a training run over this split.

        Args:
            seed: Chooses the order.
            window_tokens: Training tokens of a row.
            sequences_per_step: Rows of a step.
            weights: Share of each source by name, 0 for those not named; None takes the manifest's.
            block_windows: See `Order`.

        Raises:
            CorpusError: A name is unknown, or the corpus is too small: see `Order`.
        """
        shares = self.manifest.weights if weights is None else weights
        if unknown := sorted(set(shares) - set(self.sources)):
            known = ", ".join(self.sources)
            raise CorpusError("source weights", f"source {unknown[0]!r}", f"one of: {known}", "correct the name")
        streams = [
            SourceStream(name, shares.get(name, 0.0), index.num_tokens)
            for name, index in zip(self.sources, self.indexes, strict=True)
        ]
        return Order(seed, window_tokens, sequences_per_step, streams, block_windows)

    def batch(self, order: Order, step: int, rows: Integers | None = None) -> NDArray[np.int64]:
        """Return the tokens [n, window_tokens + 1] of a step's rows: all of them, or those given."""
        return self.windows(order.cells(step, rows), order.window_tokens)

    def windows(self, cells: Cells, window_tokens: int) -> NDArray[np.int64]:
        """Return the tokens [n, window_tokens + 1] of any windows: inputs and, one on, their targets."""
        tokens = np.empty((len(cells), window_tokens + 1), np.int64)
        first_shards = self.coordinates(cells, window_tokens).shards
        for row in np.argsort(first_shards, kind="stable"):
            start = int(cells.windows[row]) * window_tokens
            tokens[row] = self.tokens(int(cells.sources[row]), start, window_tokens + 1)
        return tokens

    def every_window(self, window_tokens: int) -> Cells:
        """Return all windows of the split once, source by source, in stream order; for evaluation."""
        counts = [num_windows(index.num_tokens, window_tokens) for index in self.indexes]
        sources = np.repeat(np.arange(len(counts)), counts)
        windows = np.concatenate([np.arange(count) for count in counts])
        return Cells(sources, np.zeros_like(windows), windows)

    def coordinates(self, cells: Cells, window_tokens: int) -> Coordinates:
        """Return where each window begins; computed from the manifest, no shard is opened."""
        shards, offsets = np.empty_like(cells.windows), np.empty_like(cells.windows)
        for source in np.unique(cells.sources):
            chosen = cells.sources == source
            found = self.indexes[source].locate(cells.windows[chosen] * window_tokens)
            shards[chosen], offsets[chosen] = found.shards, found.offsets
        return Coordinates(shards, offsets)

    def remote_shards(self, cells: Cells, window_tokens: int) -> list[RemoteShard]:
        """Return the shards that hold the windows, each once; for a corpus in an object store."""
        chosen = [
            self.indexes[source].shards_of(cells.windows[cells.sources == source] * window_tokens, window_tokens + 1)
            for source in np.unique(cells.sources)
        ]
        return [self._remote(shard) for shard in np.concatenate(chosen)]

    def tokens(self, source: int, start: int, count: int) -> np.ndarray:
        """Return part of a source's stream; a view of the mapped file where one record batch holds it."""
        index = self.indexes[source]
        if start < 0 or count < 1 or start + count > index.num_tokens:
            raise IndexError(f"tokens {start}..{start + count} of {index.num_tokens} in source {source}")
        pieces = [self.reader(span.shard).tokens(span.start, span.count) for span in index.spans(start, count)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def shard_path(self, shard: int) -> str:
        """Return the full path of a shard by its row in the manifest's table."""
        path = self.manifest.shards.column("path")[int(shard)].as_py()
        return Storage.of(self.folder).join(path)

    def batches(self, shard: int) -> pa.Table:
        """Return the manifest's rows of a shard's record batches."""
        if self._first_batches is None:
            counts = self.manifest.shards.column("num_batches").to_numpy()
            self._first_batches = np.concatenate([[0], np.cumsum(counts)])
        first, last = self._first_batches[shard], self._first_batches[shard + 1]
        return self.manifest.batches.slice(first, last - first)

    def reader(self, shard: int) -> ShardReader:
        """Return a shard mapped for reading, closing the one unused for longest if too many are."""
        if shard in self._readers:
            self._readers.move_to_end(shard)
            return self._readers[shard]
        while len(self._readers) >= self._max_open_shards:
            self._close_oldest()
        num_tokens = self.batches(shard).column("num_tokens").to_numpy()
        self._readers[shard] = ShardReader(self._place(shard), num_tokens)
        return self._readers[shard]

    def close(self) -> None:
        """Let go of all maps."""
        while self._readers:
            self._close_oldest()

    def _place(self, shard: int) -> str:
        """Return where to read a shard: its copy in the cache, or where it lies if there is no room for one."""
        if self.cache is None:
            return self.shard_path(shard)
        remote = self._remote(shard)
        # Half of the cache stays free for what is fetched ahead.
        while self._readers and self._held_bytes() + remote.num_bytes > self.cache.max_bytes // 2:
            self._close_oldest()
        held = self.cache.hold(remote)
        if held is None:  # others hold what fills the cache
            return remote.url
        self._held[shard] = held
        return str(held.path)

    def _held_bytes(self) -> int:
        return sum(held.num_bytes for held in self._held.values())

    def _close_oldest(self) -> None:
        shard, reader = self._readers.popitem(last=False)
        reader.close()
        if shard in self._held:
            self._held.pop(shard).close()

    def _remote(self, shard: int) -> RemoteShard:
        row = self.manifest.shards.slice(int(shard), 1)
        num_bytes, digest = (row.column(name)[0].as_py() for name in ("num_bytes", "xxh3_128"))
        return RemoteShard(self.shard_path(shard), num_bytes, digest)


def _indexes(shards: pa.Table, split: str, sources: tuple[str, ...]) -> tuple[SourceIndex, ...]:
    in_split = _is(shards.column("split"), split)
    num_tokens = shards.column("num_tokens").to_numpy()

    def index_of(source: str) -> SourceIndex:
        rows = np.flatnonzero(in_split & _is(shards.column("source"), source))
        return SourceIndex(rows, num_tokens[rows])

    return tuple(index_of(source) for source in sources)


def _is(column: pa.ChunkedArray, value: str) -> NDArray[np.bool_]:
    return call_function("equal", [column, value]).to_numpy()
