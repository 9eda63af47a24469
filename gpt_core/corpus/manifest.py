"""The manifest of a corpus: what is there, from what, made how, and the digests that prove it.

Written once by the tokenizing job's driver, read by every later stage. Tables go first and
``manifest.json`` last, each atomically: where it exists, the corpus is complete. It holds the tables'
digests and its own, so that a flip of any bit in any of them is found when it is read.

| file | one row is |
|---|---|
| shards.arrow | a file of the corpus: shards of each split, and rejects under the split "rejects" |
| batches.arrow | a record batch, in the order of the shards; read by `verify` and by random access |
| files.arrow | a source file |

A corpus whose vocabulary is no published one carries it as vocabulary.tiktoken, proved by the tokenizer's digest.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow.compute import MatchSubstringOptions, call_function

from gpt_core.corpus.manifest_tables import FileEntry, ShardEntry, files_table, rows, shard_tables
from gpt_core.digests import canonical_json, sha256_hex, xxh3_128_hex
from gpt_core.errors import CorpusError, RunFailedError
from gpt_core.ledger import first_difference
from gpt_core.storage import Storage, is_url
from gpt_core.tokens.vocabulary import VOCABULARY

FORMAT = "gpt-herd corpus 1"
MANIFEST = "manifest.json"
REJECTS = "rejects"
INPUT_FILES = "input files"
"""What differs, by name, where the settings are the same and the input is another."""
_BLANK_DIGEST = "0" * 64
_LEAVES_FOLDER = r"^/|(^|/)\.\.(/|$)|:|\\"
_REMEDY = "run `herd verify` on the folder; restore it, or delete it and tokenize again"


@dataclass(frozen=True, slots=True)
class TokenizerEntry:
    """The vocabulary the corpus was made with; ``digest`` does not depend on the backend.

    ``name`` is as for ``load_tokenizer``; ``VOCABULARY`` in the file stands for the ranks file in the corpus itself.
    """

    name: str
    digest: str
    vocabulary_size: int
    end_of_text: int


@dataclass(frozen=True, slots=True)
class ManifestContents:
    """What a tokenizing job commits.

    Args:
        settings: Nested JSON values, those that decide the result; not workers, not the output folder.
        input_fingerprint: Digest of the plans: the input files and how they are cut.
        weights: Mixture weight of each source by name.
        tokenizer: The vocabulary.
        shards: Every file written, in any order; consumed once.
        files: Every source file, in the order of their plans; consumed once.
        num_documents_in: Documents met in the input, readable or not, counted before anyone judged them.
        num_tails: Held-out ends of documents, each a row of its own besides its document's.
        notes: What people should know but digests must not: backends that fell back, timings.
    """

    settings: Mapping[str, Any]
    input_fingerprint: str
    weights: Mapping[str, float]
    tokenizer: TokenizerEntry
    shards: Iterable[ShardEntry]
    files: Iterable[FileEntry]
    num_documents_in: int
    num_tails: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SplitTotals:
    """Sums over the shards of one split."""

    num_shards: int
    num_documents: int
    num_tokens: int
    num_bytes: int


class Manifest:
    """A corpus's manifest as read from its folder; tables are mapped when first asked for.

    Args:
        folder: Local folder or URL of the corpus.
        header: The verified content of manifest.json.
    """

    def __init__(self, folder: str, header: Mapping[str, Any]) -> None:
        self.folder = folder
        self.header = header
        self.settings: dict[str, Any] = header["settings"]
        self.fingerprint: str = header["fingerprint"]
        self.root_digest: str = header["root_digest"]
        self.weights: dict[str, float] = header["weights"]
        self.tokenizer = _found_in(folder, TokenizerEntry(**header["tokenizer"]))
        self.splits = {name: SplitTotals(**totals) for name, totals in header["splits"].items()}
        self.num_documents_in: int = header["documents"]["in"]
        self.num_rejected: int = header["documents"]["rejected"]
        self.notes: dict[str, Any] = header["notes"]

    @functools.cached_property
    def shards(self) -> pa.Table:
        """One row a file of the corpus, by split, then plan."""
        table = self._table("shards.arrow")
        _check_inside(self.folder, table.column("path"))
        return table

    @functools.cached_property
    def batches(self) -> pa.Table:
        """One row a record batch: xxh3_64, where it ends in its shard, documents, tokens."""
        return self._table("batches.arrow")

    @functools.cached_property
    def files(self) -> pa.Table:
        """One row a source file."""
        return self._table("files.arrow")

    def _table(self, name: str) -> pa.Table:
        path = Storage.of(self.folder).join(name)
        data = _read_table_bytes(path)
        expected = self.header["tables"][name]["xxh3_128"]
        if (found := xxh3_128_hex(memoryview(data))) != expected:
            raise CorpusError(path, f"digest {found}", f"{expected}, as written in {MANIFEST}", _REMEDY)
        return pa.ipc.open_file(data).read_all()


def write(folder: str, contents: ManifestContents) -> Manifest:
    """Commit a corpus whose shards are all written: tables first, manifest.json last, each atomically.

    Temporary files that killed writers left in a local folder are removed: no one writes any more.

    Raises:
        RunFailedError: Documents in are not documents kept plus documents rejected.
    """
    storage = Storage.of(folder)
    shards, batches = shard_tables(contents.shards)
    tables = {
        "shards.arrow": shards,
        "batches.arrow": batches,
        "files.arrow": files_table(contents.files),
    }
    header = _header(folder, contents, shards)
    _remove_temporary_files(folder)
    header["tables"] = {name: _write_table(storage, name, table) for name, table in tables.items()}
    data = _sealed(header)
    storage.write_atomically(storage.join(MANIFEST), lambda file: _write_all(file, data))
    return Manifest(folder, json.loads(data))


def read(folder: str) -> Manifest:
    """Return the manifest of a complete, undamaged corpus.

    Raises:
        CorpusError: There is none, or a bit of it is not as it was written.
    """
    storage = Storage.of(folder)
    path = storage.join(MANIFEST)
    if not storage.exists(path):
        raise CorpusError(folder, f"no {MANIFEST}", "a finished corpus", "run `herd tokenize`, or name another folder")
    with storage.open_read(path) as file:
        return Manifest(folder, _unsealed(file.read(), path))


@dataclass(frozen=True, slots=True)
class Same:
    """The folder holds exactly what these settings and this input would make."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Differs:
    """The folder holds a corpus made otherwise; ``name`` is the first dotted setting that differs."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Absent:
    """The folder holds no finished corpus."""


def compare(folder: str, settings: Mapping[str, Any], input_fingerprint: str) -> Same | Differs | Absent:
    """Say whether a folder's corpus is the one that these settings and this input would make.

    Raises:
        CorpusError: The folder's manifest is damaged.
    """
    storage = Storage.of(folder)
    if not storage.exists(storage.join(MANIFEST)):
        return Absent()
    manifest = read(folder)
    plain = json.loads(canonical_json(settings))  # tuples become lists, as in the file
    if difference := first_difference(manifest.settings, plain):
        return Differs(*difference)
    if manifest.header["input"] != input_fingerprint:
        return Differs(INPUT_FILES, manifest.header["input"], input_fingerprint)
    return Same(manifest)


def fingerprint(settings: Mapping[str, Any], input_fingerprint: str) -> str:
    """Return the SHA-256 that names a result before it is made."""
    return sha256_hex([canonical_json([settings, input_fingerprint])])


def root_digest(shards: pa.Table, tokenizer_digest: str) -> str:
    """Return the SHA-256 that names a corpus's content.

    Taken over one JSON line for the tokenizer and one for each file of the corpus in the table's order:
    split, source, path, documents, tokens, xxh3_128. Backend, time, host and place do not enter.
    """
    columns = ["split", "source", "path", "num_documents", "num_tokens", "xxh3_128"]
    return sha256_hex(_lines([["tokenizer", tokenizer_digest]], rows(shards.select(columns))))


def _found_in(folder: str, entry: TokenizerEntry) -> TokenizerEntry:
    """Return the entry with the place of the vocabulary that the corpus carries, if it carries one, as its name."""
    return replace(entry, name=Storage.of(folder).join(VOCABULARY)) if entry.name == VOCABULARY else entry


def _remove_temporary_files(folder: str) -> None:
    if is_url(folder):
        return  # a remote store shows a file when it is whole, or not at all
    for inner in ("", "train", "validation", REJECTS):
        for path in Path(folder, inner).glob(".*.tmp"):  # the names this project gives; others are the user's
            path.unlink(missing_ok=True)


def _lines(*parts: Iterable[list[Any]]) -> Iterator[bytes]:
    for part in parts:
        for row in part:
            yield canonical_json(row) + b"\n"


def _header(folder: str, contents: ManifestContents, shards: pa.Table) -> dict[str, Any]:
    splits = _split_totals(shards)
    rejected = splits.pop(REJECTS, SplitTotals(0, 0, 0, 0)).num_documents
    kept = sum(totals.num_documents for totals in splits.values()) - contents.num_tails
    if contents.num_documents_in != kept + rejected:
        found = f"{contents.num_documents_in} documents in, {kept} kept, {rejected} rejected"
        raise RunFailedError(folder, found, "in = kept + rejected", "nothing was committed; report this as a bug")
    settings = dict(contents.settings)
    return {
        "format": FORMAT,
        "root_digest": root_digest(shards, contents.tokenizer.digest),
        "fingerprint": fingerprint(settings, contents.input_fingerprint),
        "input": contents.input_fingerprint,
        "settings": settings,
        "weights": dict(contents.weights),
        "tokenizer": asdict(contents.tokenizer),
        "documents": {
            "in": contents.num_documents_in,
            "kept": kept,
            "rejected": rejected,
            "tails": contents.num_tails,
        },
        "splits": {name: asdict(totals) for name, totals in splits.items()},
        "notes": dict(contents.notes),
    }


def _split_totals(shards: pa.Table) -> dict[str, SplitTotals]:
    counted = ["num_documents", "num_tokens", "num_bytes"]
    sums = shards.group_by("split").aggregate([("plan", "count"), *((name, "sum") for name in counted)])
    return {
        row["split"]: SplitTotals(row["plan_count"], *(row[f"{name}_sum"] for name in counted))
        for row in sums.sort_by("split").to_pylist()
    }


def _write_table(storage: Storage, name: str, table: pa.Table) -> dict[str, Any]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    data = memoryview(sink.getvalue())
    storage.write_atomically(storage.join(name), lambda file: _write_all(file, data))
    return {"num_rows": table.num_rows, "num_bytes": len(data), "xxh3_128": xxh3_128_hex(data)}


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    file.write(data)


def _read_table_bytes(path: str) -> pa.Buffer:
    try:
        if is_url(path):
            with Storage.of(path).open_read(path) as file:
                return pa.py_buffer(file.read())
        with pa.memory_map(path) as source:
            return source.read_buffer()
    except OSError as error:
        raise CorpusError(path, str(error), "a table of the manifest", _REMEDY) from error


def _check_inside(folder: str, paths: pa.ChunkedArray) -> None:
    """Refuse paths out of the corpus's folder: digests find damage, not what someone wrote on purpose."""
    leaving = call_function("match_substring_regex", [paths], MatchSubstringOptions(_LEAVES_FOLDER))
    if call_function("any", [leaving]).as_py():
        path = paths.filter(leaving)[0].as_py()
        raise CorpusError(
            folder, f"a manifest that names {path!r}", "files inside the corpus", "do not use this corpus"
        )


def _sealed(header: dict[str, Any]) -> bytes:
    """Return the JSON text with its own SHA-256 in it, taken while the digest's place held zeros."""
    blank = json.dumps({**header, "digest": _BLANK_DIGEST}, indent=1, allow_nan=False).encode() + b"\n"
    return _with_digest(blank, _BLANK_DIGEST, sha256_hex([blank]))


def _with_digest(data: bytes, old: str, new: str) -> bytes:
    head, _, tail = data.rpartition(old.encode())
    return head + new.encode() + tail


def _unsealed(data: bytes, path: str) -> dict[str, Any]:
    try:
        header = json.loads(data)
        digest = header["digest"]
        if header["format"] == FORMAT and sha256_hex([_with_digest(data, digest, _BLANK_DIGEST)]) == digest:
            return header
        found = "bytes that do not match their digest, or another format"
    except (ValueError, KeyError, TypeError, AttributeError):
        found = "no JSON text of a manifest"
    raise CorpusError(path, found, f"the format {FORMAT!r}, undamaged", _REMEDY)
