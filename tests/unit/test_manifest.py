"""Manifests: the commit point, found damaged at any flipped bit, and a digest of content alone."""

import dataclasses
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import xxhash

from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import Absent, Differs, FileEntry, Same
from gpt_core.errors import CorpusError, RunFailedError
from gpt_core.storage import Storage
from tests.unit import tiny_corpus
from tests.unit.tiny_corpus import SETTINGS, TinyCorpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return tiny_corpus.build(tmp_path_factory.mktemp("corpus"))


def test_a_manifest_reads_back_as_written(corpus: TinyCorpus) -> None:
    read = manifest.read(str(corpus.folder))
    assert read.settings == SETTINGS
    assert read.header == corpus.manifest.header
    assert read.weights == {"web": 3.0, "books": 1.0}
    assert read.tokenizer.end_of_text == tiny_corpus.END_OF_TEXT
    assert read.files.to_pylist()[2] == {
        "source": "web",
        "root": "/in",
        "name": "part-2.txt",
        "num_bytes": 1000,
        "changed_ns": 0,
        "digest": None,
    }
    for split in ("train", "validation"):
        documents = [d for (where, _), group in corpus.documents.items() if where == split for d in group]
        totals = read.splits[split]
        assert (totals.num_shards, totals.num_documents) == (6, len(documents))
        assert totals.num_tokens == sum(map(len, documents))
    assert read.num_rejected == 2
    assert read.num_documents_in == 6 * 45 + 2


def test_shards_are_listed_by_split_and_plan_with_their_batches_beside_them(corpus: TinyCorpus) -> None:
    rows = corpus.manifest.shards.to_pylist()
    keys = [(row["split"], row["plan"]) for row in rows]
    assert keys == sorted(keys)
    assert sum(row["num_batches"] for row in rows) == corpus.manifest.batches.num_rows
    first = 0
    for row in rows:
        batches = corpus.manifest.batches.slice(first, row["num_batches"]).to_pylist()
        assert sum(batch["num_tokens"] for batch in batches) == row["num_tokens"]
        assert all(batch["end_bytes"] < row["num_bytes"] for batch in batches)
        first += row["num_batches"]


def test_the_root_digest_is_the_documented_one(corpus: TinyCorpus) -> None:
    """An independent spelling of the recipe, with digests of the files on disk."""
    names = ("split", "source", "path", "num_documents", "num_tokens")
    lines = [["tokenizer", "cd" * 32]]
    for row in corpus.manifest.shards.to_pylist():
        file_digest = xxhash.xxh3_128((corpus.folder / row["path"]).read_bytes()).hexdigest()
        lines.append([*(row[name] for name in names), file_digest])
    text = "".join(json.dumps(line).replace(", ", ",") + "\n" for line in lines)
    assert corpus.manifest.root_digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"notes": {"backend": "another", "seconds": 3}},
        {"files": [FileEntry("web", "/elsewhere", "part-0.txt", 1000)]},
    ],
)
def test_the_root_digest_ignores_notes_and_places(corpus: TinyCorpus, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert tiny_corpus.build(tmp_path, **changes).manifest.root_digest == corpus.manifest.root_digest


def test_the_root_digest_ignores_the_order_in_which_shards_were_made(corpus: TinyCorpus, tmp_path: Path) -> None:
    entries = tiny_corpus.build(tmp_path).entries
    random.Random(3).shuffle(entries)
    again = tiny_corpus.build(tmp_path, shards=entries).manifest
    assert again.root_digest == corpus.manifest.root_digest
    assert (tmp_path / "shards.arrow").read_bytes() == (corpus.folder / "shards.arrow").read_bytes()


def test_the_root_digest_follows_every_shard_and_the_tokenizer(corpus: TinyCorpus, tmp_path: Path) -> None:
    entries = tiny_corpus.build(tmp_path).entries
    stats = dataclasses.replace(entries[4].stats, xxh3_128="00" * 16)
    other_shard = [*entries[:4], dataclasses.replace(entries[4], stats=stats), *entries[5:]]
    other_tokenizer = dataclasses.replace(corpus.manifest.tokenizer, digest="ee" * 32)
    digests = {
        corpus.manifest.root_digest,
        tiny_corpus.build(tmp_path, shards=other_shard).manifest.root_digest,
        tiny_corpus.build(tmp_path, tokenizer=other_tokenizer).manifest.root_digest,
    }
    assert len(digests) == 3


def test_documents_in_must_be_kept_plus_rejected(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="273 documents in, 270 kept, 2 rejected"):
        tiny_corpus.build(tmp_path, num_documents_in=273)
    assert not (tmp_path / "manifest.json").exists()


def test_held_out_ends_are_rows_but_no_documents_of_their_own(tmp_path: Path) -> None:
    header = tiny_corpus.build(tmp_path, num_documents_in=262, num_tails=10).manifest.header
    assert header["documents"] == {"in": 262, "kept": 260, "rejected": 2, "tails": 10}


def test_the_manifest_is_the_last_thing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = Storage.write_atomically

    def spy(self: Storage, path: str, *rest: object) -> None:
        written.append(Path(path).name)
        write(self, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Storage, "write_atomically", spy)
    tiny_corpus.build(tmp_path)
    assert written[-1] == "manifest.json"
    assert sorted(written) == ["batches.arrow", "files.arrow", "manifest.json", "shards.arrow"]


def test_files_that_killed_writers_left_are_gone_after_the_commit(corpus: TinyCorpus, tmp_path: Path) -> None:
    for left in ("train/.00000000.arrow.0a1b.tmp", "rejects/.00000000.jsonl.0a1b.tmp", ".shards.arrow.0a1b.tmp"):
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).write_bytes(b"half")
    tiny_corpus.build(tmp_path)
    names = [sorted(str(path.relative_to(root)) for path in root.rglob("*")) for root in (tmp_path, corpus.folder)]
    assert names[0] == names[1]


def test_a_commit_leaves_files_that_are_not_its_own(tmp_path: Path) -> None:
    for own in ("notes.tmp", "train/draft.tmp", "drafts/.chapter.tmp"):
        (tmp_path / own).parent.mkdir(exist_ok=True)
        (tmp_path / own).write_bytes(b"the user's")
    tiny_corpus.build(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.tmp")) == [".chapter.tmp", "draft.tmp", "notes.tmp"]


def test_any_flipped_bit_of_the_manifest_is_found(corpus: TinyCorpus, tmp_path: Path) -> None:
    whole = (corpus.folder / "manifest.json").read_bytes()
    for bit in random.Random(4).sample(range(8 * len(whole)), 2000):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "manifest.json").write_bytes(data)
        with pytest.raises(CorpusError, match=r"manifest\.json"):
            manifest.read(str(tmp_path))


@pytest.mark.parametrize("table", ["shards", "batches", "files"])
def test_flipped_bits_of_a_table_are_found_when_it_is_read(corpus: TinyCorpus, tmp_path: Path, table: str) -> None:
    shutil.copytree(corpus.folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{table}.arrow"
    whole = path.read_bytes()
    for bit in random.Random(5).sample(range(8 * len(whole)), 200):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(CorpusError, match=table):
            getattr(manifest.read(str(tmp_path)), table)


def test_a_lost_table_is_named(corpus: TinyCorpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "shards.arrow").unlink()
    with pytest.raises(CorpusError, match=r"shards\.arrow"):
        _ = manifest.read(str(tmp_path)).shards


def test_the_same_settings_and_input_compare_as_the_same(corpus: TinyCorpus) -> None:
    found = manifest.compare(str(corpus.folder), {**SETTINGS, "shard_bytes": 100}, "ab" * 32)
    assert isinstance(found, Same)
    assert found.manifest.fingerprint == manifest.fingerprint(SETTINGS, "ab" * 32)


def test_tuples_in_settings_equal_the_lists_they_are_stored_as(corpus: TinyCorpus) -> None:
    settings = {**SETTINGS, "sources": ({"name": "web"}, {"name": "books"})}
    assert isinstance(manifest.compare(str(corpus.folder), settings, "ab" * 32), Same)


def test_a_setting_that_differs_is_named_with_both_values(corpus: TinyCorpus) -> None:
    settings = {**SETTINGS, "tokenizer": {"name": "gpt2"}}
    found = manifest.compare(str(corpus.folder), settings, "ab" * 32)
    assert found == Differs("tokenizer.name", "bytes", "gpt2")


def test_other_input_differs(corpus: TinyCorpus) -> None:
    assert manifest.compare(str(corpus.folder), SETTINGS, "cd" * 32) == Differs("input files", "ab" * 32, "cd" * 32)


def test_a_folder_without_a_manifest_compares_as_absent(tmp_path: Path) -> None:
    assert manifest.compare(str(tmp_path), SETTINGS, "ab" * 32) == Absent()


def test_reading_a_folder_without_a_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"found no manifest\.json; expected a finished corpus; run `herd tokenize`"):
        manifest.read(str(tmp_path))


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../other/train/00000000.arrow", "train/../../x.arrow", "..", "s3://other/x.arrow", "a\\..\\x"],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    tiny = tiny_corpus.build(tmp_path / "corpus")
    entries = [*tiny.entries[1:], dataclasses.replace(tiny.entries[0], path=path)]
    tiny_corpus.build(tmp_path / "forged", shards=entries)
    with pytest.raises(CorpusError, match="a manifest that names"):
        _ = manifest.read(str(tmp_path / "forged")).shards
