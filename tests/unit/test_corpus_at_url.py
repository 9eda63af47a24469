"""A corpus in an object store is written, read, traced and verified as one on a disk is."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from cluster import tokenizing
from cluster.recording.journal import read_all
from cluster.recording.record_book import RecordBook
from cluster.recording.replay import JOURNAL_NAME
from gpt_core.corpus import manifest
from gpt_core.corpus.corpus import Corpus
from gpt_core.corpus.manifest import ManifestContents
from gpt_core.corpus.shards import ShardReader, ShardWriter
from gpt_core.corpus.trace import trace_cell
from gpt_core.corpus.verify import verify
from gpt_core.settings import TokenizeSettings
from gpt_core.storage import Storage
from tests.unit import tiny_corpus
from tests.unit.tiny_corpus import TinyCorpus


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return tiny_corpus.build(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def url(tiny: TinyCorpus, tmp_path: Path) -> str:
    """The tiny corpus again, in a store that only fsspec reaches: no memory map, no rename."""
    storage = Storage.of(f"file://{tmp_path}/corpus")
    for path in tiny.folder.rglob("*.*"):
        if path.is_file():
            data = path.read_bytes()
            storage.write_atomically(
                storage.join(str(path.relative_to(tiny.folder))), lambda file, data=data: file.write(data)
            )
    return storage.root


def test_windows_and_traces_are_those_of_the_local_corpus(tiny: TinyCorpus, url: str) -> None:
    local, remote = Corpus(str(tiny.folder)), Corpus(url, max_open_shards=2)
    order = local.order(seed=1, window_tokens=16, sequences_per_step=8)
    for step in range(10):
        assert remote.batch(order, step).tolist() == local.batch(order, step).tolist()
    assert trace_cell(remote, order, 3, 2) == trace_cell(local, order, 3, 2)


def test_verify_is_silent_on_a_clean_store_and_names_damage(url: str) -> None:
    assert verify(url) == []
    folder = Path(url.removeprefix("file://")) / "train"
    data = bytearray((folder / "00000002.arrow").read_bytes())
    data[700] ^= 1
    (folder / "00000002.arrow").write_bytes(data)
    (folder / "x.arrow").write_bytes(b"x")
    assert {found.file for found in verify(url)} == {"train/00000002.arrow", "train/x.arrow"}
    (folder / "00000002.arrow").unlink()
    assert "train/00000002.arrow" in {found.file for found in verify(url)}


def test_a_manifest_and_a_shard_written_to_a_store_equal_local_ones(tiny: TinyCorpus, url: str, tmp_path: Path) -> None:
    header = tiny.manifest.header
    contents = ManifestContents(
        settings=header["settings"],
        input_fingerprint=header["input"],
        weights=header["weights"],
        tokenizer=tiny.manifest.tokenizer,
        shards=tiny.entries,
        files=[],
        num_documents_in=tiny.manifest.num_documents_in,
    )
    copy = manifest.write(f"{url}/copy", contents)
    assert copy.root_digest == manifest.read(f"{url}/copy").root_digest == tiny.manifest.root_digest
    places = [f"{url}/train/new.arrow", str(tmp_path / "new.arrow")]
    stats = []
    for place in places:
        with ShardWriter(place, np.uint16) as writer:
            writer.append(np.arange(9, dtype=np.uint16), np.array([0, 4, 9]), ["a", "b"], [0, 0], [4, 5])
            stats.append(writer.close())
    assert stats[0] == stats[1]
    assert [ShardReader(place).tokens(2, 5).tolist() for place in places] == [[2, 3, 4, 5, 6]] * 2


def test_the_manifest_in_a_store_becomes_an_artifact_of_the_run(tiny: TinyCorpus, url: str, tmp_path: Path) -> None:
    book = RecordBook(tmp_path / "tracking", None, system_seconds=None)
    with book.opened("", "job", "tokenize", None) as run:
        settings = TokenizeSettings(output=url, input=("text",))
        tokenizing.record(run, settings, Mock(), tokenizing.summary_of(tiny.manifest))
    book.close(1.0)
    (path,) = [
        record["path"] for record in read_all(tmp_path / "tracking" / JOURNAL_NAME) if record["do"] == "artifact"
    ]
    assert (tmp_path / "tracking" / path).read_bytes() == (tiny.folder / manifest.MANIFEST).read_bytes()
