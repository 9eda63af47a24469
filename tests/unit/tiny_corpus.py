"""Builds small corpora of known documents, without a tokenizer, for the tests of the stored corpus."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_core import digests
from gpt_core.corpus import manifest, shards
from gpt_core.corpus.manifest import FileEntry, Manifest, ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.shards import ShardStats, ShardWriter

END_OF_TEXT = 999
NUM_PLANS = 6
SETTINGS = {
    "tokenizer": {"name": "bytes"},
    "shard_bytes": 100,
    "sources": [{"name": "web"}, {"name": "books"}],
}
WEIGHTS = {"web": 3.0, "books": 1.0}


@dataclass(frozen=True)
class TinyCorpus:
    """A corpus on disk and what it was made of: documents by (split, source), in stream order."""

    folder: Path
    manifest: Manifest
    documents: dict[tuple[str, str], list[np.ndarray]]
    entries: list[ShardEntry]

    def stream(self, split: str, source: str) -> np.ndarray:
        return np.concatenate(self.documents[split, source])


def build(folder: Path, batch_tokens: int = 60, **changes: Any) -> TinyCorpus:
    """Write a corpus: plans of two sources, a train and a validation shard each, rejects in every third."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_TOKENS", batch_tokens)
        documents: dict[tuple[str, str], list[np.ndarray]] = {}
        entries = [entry for plan in range(NUM_PLANS) for entry in _write_plan(folder, plan, documents)]
    contents: dict[str, Any] = {
        "settings": SETTINGS,
        "input_fingerprint": "ab" * 32,
        "weights": WEIGHTS,
        "tokenizer": TokenizerEntry("bytes", "cd" * 32, END_OF_TEXT + 1, END_OF_TEXT),
        "shards": entries,
        "files": [FileEntry(source_of(plan), "/in", name_of(plan), 1000) for plan in range(NUM_PLANS)],
        "num_documents_in": sum(entry.stats.num_documents for entry in entries),
        "notes": {"backend": "reference"},
    }
    committed = manifest.write(str(folder), ManifestContents(**contents | changes))
    return TinyCorpus(folder, committed, documents, entries)


def source_of(plan: int) -> str:
    return "web" if plan < 4 else "books"


def name_of(plan: int) -> str:
    return f"part-{plan}.txt"


def _write_plan(folder: Path, plan: int, documents: dict[tuple[str, str], list[np.ndarray]]) -> list[ShardEntry]:
    source = source_of(plan)
    entries = [
        _write_shard(folder, plan, split, documents.setdefault((split, source), []))
        for split in ("train", "validation")
    ]
    return [*entries, _write_rejects(folder, plan)] if plan % 3 == 0 else entries


def _write_shard(folder: Path, plan: int, split: str, documents: list[np.ndarray]) -> ShardEntry:
    random = np.random.default_rng([plan, len(split)])
    path = f"{split}/{plan:08d}.arrow"
    start = 0
    with ShardWriter(folder / path, np.uint16) as writer:
        for length in random.integers(0, 30, 40 if split == "train" else 5):
            tokens = np.append(random.integers(0, END_OF_TEXT, length), END_OF_TEXT).astype(np.uint16)
            writer.append(tokens, np.array([0, len(tokens)]), [name_of(plan)], [start], [start + int(length)])
            start += int(length)
            documents.append(tokens)
        return ShardEntry(split, source_of(plan), plan, path, writer.close())


def _write_rejects(folder: Path, plan: int) -> ShardEntry:
    path = f"rejects/{plan:08d}.jsonl"
    data = f'{{"file": "{name_of(plan)}", "line": 3, "start": 20, "reason": "found no text"}}\n'.encode()
    (folder / "rejects").mkdir(exist_ok=True)
    (folder / path).write_bytes(data)
    stats = ShardStats(num_documents=1, num_bytes=len(data), xxh3_128=digests.xxh3_128_hex(data))
    return ShardEntry("rejects", source_of(plan), plan, path, stats)
