"""Finds damage in a finished corpus: any flipped bit, any file lost, cut or added, as closely as can be.

Called by `herd verify` and by tests. Every file is read once, in chunks, against its xxh3_128; only a
file that differs is read again, by record batch and then by document.
"""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import MANIFEST, Manifest
from gpt_core.corpus.shards import ShardReader
from gpt_core.digests import row_checksums, xxh3_64_int
from gpt_core.errors import CorpusError
from gpt_core.storage import Storage
from gpt_core.tokens.tokenizer import GPT2_PATTERN
from gpt_core.tokens.vocabulary import VOCABULARY, digest_formatted

CHUNK_BYTES = 1 << 20  # stays in the second-level cache between the read and the digest
_TABLES = ("shards", "batches", "files")


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was written.

    ``file`` is relative to the corpus; ``batch`` counts the file's record batches and ``document`` its rows,
    both from 0, None where the damage is not inside one.
    """

    file: str
    batch: int | None
    document: int | None
    what: str

    def __str__(self) -> str:
        batch = "" if self.batch is None else f", batch {self.batch}"
        document = "" if self.document is None else f", document {self.document}"
        return f"{self.file}{batch}{document}: {self.what}"


@dataclass(frozen=True, slots=True)
class _Batch:
    """Where a record batch lies in its shard and what it should hold."""

    index: int
    start_bytes: int
    end_bytes: int
    first_document: int
    digest: int


def verify(folder: str, num_threads: int = 1) -> list[Damage]:
    """Return all damage of a finished corpus, in the order of its files; empty if every bit is as written.

    Args:
        folder: Folder or URL of the corpus.
        num_threads: Files read at once; reading and hashing run outside of Python's lock.

    Raises:
        CorpusError: The folder holds no finished corpus at all.
    """
    storage = Storage.of(folder)
    if not storage.exists(storage.join(MANIFEST)):
        manifest.read(folder)  # raises, and says what to run
    try:
        corpus = manifest.read(folder)
    except CorpusError as error:
        return [Damage(MANIFEST, None, None, error.found)]
    damage = [*_damaged_tables(corpus), *_damaged_vocabulary(corpus)]
    if any(found.file in ("shards.arrow", "batches.arrow") for found in damage):
        return damage  # nothing left to hold the shards against
    return damage + _damaged_files(corpus, num_threads) + list(_unlisted_files(corpus))


def _damaged_tables(corpus: Manifest) -> Iterator[Damage]:
    for name in _TABLES:
        try:
            getattr(corpus, name)
        except CorpusError as error:
            yield Damage(f"{name}.arrow", None, None, error.found)


def _damaged_vocabulary(corpus: Manifest) -> Iterator[Damage]:
    if corpus.header["tokenizer"]["name"] != VOCABULARY:
        return
    try:
        with Storage.of(corpus.folder).open_read(corpus.tokenizer.name) as file:
            digest = digest_formatted(file.read(), GPT2_PATTERN)
    except OSError as error:
        yield Damage(VOCABULARY, None, None, f"cannot be read: {error.strerror or error}")
        return
    if digest != corpus.tokenizer.digest:
        yield Damage(VOCABULARY, None, None, "bytes differ")


def _damaged_files(corpus: Manifest, num_threads: int) -> list[Damage]:
    rows = corpus.shards.to_pylist()
    first_batches = np.cumsum([0, *(row["num_batches"] for row in rows)]).tolist()
    with ThreadPoolExecutor(num_threads) as pool:
        found = pool.map(functools.partial(verify_file, corpus), rows, first_batches[:-1])
        return [damage for group in found for damage in group]


def _unlisted_files(corpus: Manifest) -> Iterator[Damage]:
    """Yield files in the folders of the corpus's own files that the manifest does not know."""
    storage = Storage.of(corpus.folder)
    listed = set(corpus.shards.column("path").to_pylist())
    for folder in sorted({path.rpartition("/")[0] for path in listed}):
        if storage.exists(storage.join(folder)):
            names = sorted(name for name, _ in storage.list_files(storage.join(folder)))
            unknown = (f"{folder}/{name}" for name in names if f"{folder}/{name}" not in listed)
            yield from (Damage(path, None, None, "is not in the manifest") for path in unknown)


def verify_file(corpus: Manifest, row: dict[str, Any], first_batch: int) -> list[Damage]:
    """Return the damage of one file of the corpus.

    Args:
        corpus: The manifest.
        row: The file's row in the manifest's shard table.
        first_batch: Row of its first record batch in the manifest's batch table.
    """
    storage = Storage.of(corpus.folder)
    path = storage.join(row["path"])
    try:
        with storage.open_read(path) as file:
            num_bytes, digest = _digest(file)
    except OSError as error:
        return [Damage(row["path"], None, None, f"cannot be read: {error.strerror or error}")]
    if digest == row["xxh3_128"] and num_bytes == row["num_bytes"]:
        return []
    damage = [] if num_bytes == row["num_bytes"] else [_wrong_length(row, num_bytes)]
    batches = _batches(corpus, first_batch, row["num_batches"])
    inside = [found for batch in batches for found in _damaged_batch(storage, row, batch)]
    return damage + inside or [Damage(row["path"], None, None, _outside(row))]


def _digest(file: BinaryIO) -> tuple[int, str]:
    digest, num_bytes = xxhash.xxh3_128(), 0
    chunk = memoryview(bytearray(CHUNK_BYTES))
    while count := file.readinto(chunk):  # type: ignore[attr-defined]
        digest.update(chunk[:count])
        num_bytes += count
    return num_bytes, digest.hexdigest()


def _wrong_length(row: dict[str, Any], num_bytes: int) -> Damage:
    return Damage(row["path"], None, None, f"{num_bytes} bytes; {row['num_bytes']} were written")


def _outside(row: dict[str, Any]) -> str:
    return "the end mark or the footer differs" if row["num_batches"] else "bytes differ"


def _batches(corpus: Manifest, first_batch: int, count: int) -> list[_Batch]:
    table = corpus.batches.slice(first_batch, count).to_pydict()
    starts = [0, *table["end_bytes"]]
    documents = np.cumsum([0, *table["num_documents"]]).tolist()
    return [
        _Batch(index, starts[index], starts[index + 1], documents[index], table["digest"][index])
        for index in range(count)
    ]


def _damaged_batch(storage: Storage, row: dict[str, Any], batch: _Batch) -> list[Damage]:
    path = storage.join(row["path"])
    with storage.open_read(path) as file:
        file.seek(batch.start_bytes)
        data = file.read(batch.end_bytes - batch.start_bytes)
    if xxh3_64_int(data) == batch.digest:
        return []
    documents = _damaged_documents(path, batch)
    if not documents:
        return [Damage(row["path"], batch.index, None, "bytes differ outside of the tokens")]
    return [
        Damage(row["path"], batch.index, batch.first_document + number, "tokens do not match their checksum")
        for number in documents
    ]


def _damaged_documents(path: str, batch: _Batch) -> list[int]:
    """Return the rows of a damaged batch whose checksums differ; none if it cannot even be read."""
    try:
        rows = ShardReader(path).batch(batch.index)
        rows.validate(full=True)
        tokens, offsets = rows.column(0).values.to_numpy(), rows.column(0).offsets.to_numpy()
        differs = row_checksums(tokens, offsets) != rows.column("checksum").to_numpy()
    except (CorpusError, pa.ArrowException, OSError):
        return []
    return np.flatnonzero(differs).tolist()
