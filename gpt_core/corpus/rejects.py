"""The file of a shard's rejects: JSON lines, one an object with source, file, line, start and reason.

Rejects of a piece from the middle of a file have the line null, and line_of_piece, until ``corpus.reject_lines``
has given them their numbers.
"""

import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, cast

import orjson
import xxhash

from gpt_core.corpus.shards import ShardStats
from gpt_core.documents.document_batch import Reject
from gpt_core.storage import Storage

_SPOOL_BYTES = 4 << 20


def read_rejects(path: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of rejects, a path or a URL."""
    with Storage.of(path).open_read(path) as file:
        yield from map(orjson.loads, io.BufferedReader(cast("io.RawIOBase", file)))


class RejectWriter:
    """Collects rejects in bounded memory and writes them at ``close``, atomically; none, no file.

    Args:
        path: Where the file shall lie, a path or a URL.
        in_mid_file: Whether lines are counted from elsewhere than the beginning of the file.
    """

    def __init__(self, path: str, *, in_mid_file: bool = False) -> None:
        self._path, self._in_mid_file = path, in_mid_file
        self._spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - closed by __exit__
        self._digest = xxhash.xxh3_128()
        self._num_rejects = 0
        self._num_bytes = 0

    def append(self, source: str, rejects: Iterable[Reject]) -> None:
        """Add rejects of a source in order."""
        for reject in rejects:
            line = orjson.dumps(self._described(source, reject), option=orjson.OPT_APPEND_NEWLINE)
            self._spool.write(line)
            self._digest.update(line)
            self._num_rejects += 1
            self._num_bytes += len(line)

    def close(self) -> ShardStats:
        """Write the file and return its stats: rejects as documents, no tokens, no batches."""
        if self._num_rejects == 0:
            return ShardStats()
        self._spool.seek(0)
        Storage.of(self._path).write_atomically(self._path, lambda file: shutil.copyfileobj(self._spool, file))
        return ShardStats(self._num_rejects, 0, self._num_bytes, self._digest.hexdigest())

    def _described(self, source: str, reject: Reject) -> dict[str, Any]:
        place = {"source": source, "file": reject.file, "line": reject.line, "start": reject.start}
        described = {**place, "reason": reject.reason}
        if self._in_mid_file and reject.line is not None:
            described |= {"line": None, "line_of_piece": reject.line}
        return described

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()
