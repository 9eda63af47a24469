"""The tables of a manifest: their columns, and how they are built from what workers report.

`gpt_core.corpus.manifest` writes and reads them. Entries stream through in groups, so a million shards never stand
in memory as Python objects.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from gpt_core.corpus.shards import ShardStats

_ROWS_AT_ONCE = 1 << 14
_SHARD_COLUMNS = pa.schema(
    [
        ("split", pa.string()),
        ("source", pa.string()),
        ("plan", pa.int64()),
        ("path", pa.string()),
        ("num_documents", pa.int64()),
        ("num_tokens", pa.int64()),
        ("num_bytes", pa.int64()),
        ("xxh3_128", pa.string()),
        ("num_batches", pa.int64()),
    ]
)
_BATCH_COLUMNS = pa.schema(
    [
        ("digest", pa.uint64()),
        ("end_bytes", pa.int64()),
        ("num_documents", pa.int64()),
        ("num_tokens", pa.int64()),
    ]
)
_FILE_COLUMNS = pa.schema(
    [
        ("source", pa.string()),
        ("root", pa.string()),
        ("name", pa.string()),
        ("num_bytes", pa.int64()),
        ("changed_ns", pa.int64()),
        ("digest", pa.uint64()),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One file of the corpus as the worker that wrote it describes it.

    A file of rejects has the split "rejects", its rejected documents as documents, and no batches.
    """

    split: str
    source: str
    plan: int
    path: str
    stats: ShardStats


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One source file as it was read.

    ``root`` is where this machine found it, ``changed_ns`` when it had last been changed; both stay out of the root
    digest. ``digest`` is that of its contents (``gpt_core.documents.input_changes``), None where it was not taken.
    """

    source: str
    root: str
    name: str
    num_bytes: int
    changed_ns: int = 0
    digest: int | None = None


def files_table(entries: Iterable[FileEntry]) -> pa.Table:
    """Return one row a source file, in the order given."""
    return _table_of((asdict(entry) for entry in entries), _FILE_COLUMNS)


def shard_tables(entries: Iterable[ShardEntry]) -> tuple[pa.Table, pa.Table]:
    """Return one row a file of the corpus, by split, then plan, and one row a record batch in that order."""
    lists = [pa.field(f"batch.{column.name}", pa.list_(column.type)) for column in _BATCH_COLUMNS]
    table = _table_of((_entry_row(entry) for entry in entries), pa.schema([*_SHARD_COLUMNS, *lists]))
    table = table.sort_by([("split", "ascending"), ("plan", "ascending")])
    return table.select(_SHARD_COLUMNS.names), _flattened_batches(table)


def rows(table: pa.Table) -> Iterator[list[Any]]:
    """Yield the rows of a table as lists."""
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        columns = [column.to_pylist() for column in batch.columns]
        yield from (list(row) for row in zip(*columns, strict=True))


def _entry_row(entry: ShardEntry) -> dict[str, Any]:
    stats = entry.stats
    return {
        "split": entry.split,
        "source": entry.source,
        "plan": entry.plan,
        "path": entry.path,
        "num_documents": stats.num_documents,
        "num_tokens": stats.num_tokens,
        "num_bytes": stats.num_bytes,
        "xxh3_128": stats.xxh3_128,
        "num_batches": len(stats.batch_digests),
        "batch.digest": stats.batch_digests,
        "batch.end_bytes": stats.batch_end_bytes,
        "batch.num_documents": stats.batch_documents,
        "batch.num_tokens": stats.batch_tokens,
    }


def _flattened_batches(listed: pa.Table) -> pa.Table:
    def flat(name: str) -> pa.ChunkedArray:
        column = listed.column(f"batch.{name}")
        return pa.chunked_array([chunk.flatten() for chunk in column.chunks], _BATCH_COLUMNS.field(name).type)

    return pa.table({name: flat(name) for name in _BATCH_COLUMNS.names}, schema=_BATCH_COLUMNS)


def _table_of(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of the rows, without ever holding many of them as Python objects."""
    left = iter(rows)
    groups = iter(lambda: list(islice(left, _ROWS_AT_ONCE)), [])
    return pa.Table.from_batches((pa.RecordBatch.from_pylist(group, schema) for group in groups), schema)
