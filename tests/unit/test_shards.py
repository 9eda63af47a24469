"""Shards: bytes depend on the documents alone, and readers get them back without a copy."""

import dataclasses
import io
import json
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.corpus import shards
from gpt_core.corpus.shards import ShardReader, ShardWriter, with_end_of_text
from gpt_core.errors import CorpusError

EOT = 50256


def random_documents(seed: int, count: int, longest: int = 40) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest, count)
    return [np.append(random.integers(0, EOT, length), EOT).astype(np.uint16) for length in lengths]


def append(writer: ShardWriter, documents: list[np.ndarray], first: int = 0) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    numbers = range(first, first + len(documents))
    names = [f"folder/file-{number % 7}.txt" for number in numbers]
    tokens = np.concatenate(documents)
    writer.append(tokens, offsets, names, [10 * n for n in numbers], [10 * n + 5 for n in numbers])


def write(path: Path, documents: list[np.ndarray], group: int | None = None) -> shards.ShardStats:
    with ShardWriter(path, np.uint16) as writer:
        step = group or len(documents)
        for first in range(0, len(documents), step):
            append(writer, documents[first : first + step], first)
        return writer.close()


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH_TOKENS", 100)


def test_end_of_text_is_appended_to_each_document_even_an_empty_one() -> None:
    tokens = np.array([1, 2, 3], np.uint16)
    flat, offsets = with_end_of_text(tokens, np.array([0, 2, 2, 3]), 9)
    assert flat.tolist() == [1, 2, 9, 9, 3, 9]
    assert offsets.tolist() == [0, 3, 4, 6]
    assert flat.dtype == np.uint16


@pytest.mark.usefixtures("small_batches")
def test_documents_come_back_with_their_source(tmp_path: Path) -> None:
    documents = random_documents(seed=1, count=50)
    stats = write(tmp_path / "train" / "00000000.arrow", documents)
    reader = ShardReader(tmp_path / "train" / "00000000.arrow")
    found = [
        reader.document(batch, row)
        for batch in range(reader.num_batches)
        for row in range(reader.batch(batch).num_rows)
    ]
    assert [row.tokens.tolist() for row in found] == [document.tolist() for document in documents]
    assert [row.file for row in found] == [f"folder/file-{number % 7}.txt" for number in range(50)]
    assert [(row.start, row.end) for row in found] == [(10 * n, 10 * n + 5) for n in range(50)]
    assert [row.checksum for row in found] == [xxhash.xxh3_64(d.tobytes()).intdigest() & 0xFFFFFFFF for d in documents]
    assert stats.num_documents == 50
    assert stats.num_tokens == reader.num_tokens == sum(map(len, documents))


@pytest.mark.usefixtures("small_batches")
def test_bytes_do_not_depend_on_how_documents_were_handed_over(tmp_path: Path) -> None:
    documents = random_documents(seed=2, count=60)
    stats = [write(tmp_path / f"{group}.arrow", documents, group) for group in (1, 7, 60)]
    contents = {(tmp_path / f"{group}.arrow").read_bytes() for group in (1, 7, 60)}
    assert len(contents) == 1
    assert stats[0] == stats[1] == stats[2]


@pytest.mark.usefixtures("small_batches")
def test_stats_describe_the_bytes_on_disk(tmp_path: Path) -> None:
    documents = random_documents(seed=3, count=60)
    stats = write(tmp_path / "a.arrow", documents)
    data = (tmp_path / "a.arrow").read_bytes()
    assert stats.num_bytes == len(data)
    assert stats.xxh3_128 == xxhash.xxh3_128(data).hexdigest()
    bounds = [0, *stats.batch_end_bytes]
    parts = [data[low:high] for low, high in pairwise(bounds)]
    assert stats.batch_digests == tuple(xxhash.xxh3_64(part).intdigest() for part in parts)
    assert json.loads(json.dumps(dataclasses.asdict(stats)))["batch_tokens"] == list(stats.batch_tokens)
    with pa.memory_map(str(tmp_path / "a.arrow")) as source:
        batches = [pa.ipc.open_file(source).get_batch(index) for index in range(len(parts))]
    assert stats.batch_documents == tuple(batch.num_rows for batch in batches)
    assert stats.batch_tokens == tuple(len(batch.column(0).values) for batch in batches)
    assert all(count >= 100 for count in stats.batch_tokens[:-1])


@pytest.mark.usefixtures("small_batches")
def test_a_document_longer_than_a_batch_stays_one_row(tmp_path: Path) -> None:
    documents = [np.arange(250, dtype=np.uint16), np.arange(3, dtype=np.uint16)]
    write(tmp_path / "a.arrow", documents)
    reader = ShardReader(tmp_path / "a.arrow")
    assert reader.token_bounds.tolist() == [0, 250, 253]


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, ShardReader]:
    path = tmp_path_factory.mktemp("stream") / "a.arrow"
    documents = random_documents(seed=4, count=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_TOKENS", 100)
        write(path, documents)
    return np.concatenate(documents), ShardReader(path)


@settings(deadline=None)
@given(start=st.integers(0, 900), count=st.integers(0, 300))
def test_any_range_of_tokens_reads_as_the_concatenated_stream(
    stream: tuple[np.ndarray, ShardReader], start: int, count: int
) -> None:
    tokens, reader = stream
    if start + count > len(tokens):
        with pytest.raises(IndexError):
            reader.tokens(start, count)
    else:
        assert reader.tokens(start, count).tolist() == tokens[start : start + count].tolist()


def test_tokens_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", random_documents(seed=5, count=20))
    before = pa.total_allocated_bytes()
    tokens = ShardReader(tmp_path / "a.arrow").tokens(3, 50)
    assert not tokens.flags.owndata
    assert pa.total_allocated_bytes() - before < 4096


@pytest.mark.usefixtures("small_batches")
def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with ShardWriter(tmp_path / "a.arrow", np.uint16) as writer:
            append(writer, random_documents(seed=6, count=40))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_batches")
def test_a_shard_has_no_name_before_it_is_whole(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.arrow", np.uint16)
    append(writer, random_documents(seed=6, count=40))
    assert not (tmp_path / "a.arrow").exists()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.arrow"]


def test_no_documents_make_no_file(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.arrow", np.uint16) as writer:
        assert writer.close().num_documents == 0
    assert list(tmp_path.iterdir()) == []


def test_tokens_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="uint32"), ShardWriter(tmp_path / "a.arrow", np.uint16) as writer:
        writer.append(np.array([1], np.uint32), np.array([0, 1]), ["f"], [0], [1])


def test_a_torn_or_absent_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", random_documents(seed=7, count=20))
    torn = tmp_path / "torn.arrow"
    torn.write_bytes((tmp_path / "a.arrow").read_bytes()[:-20])
    with pytest.raises(CorpusError, match="torn"):
        ShardReader(torn)
    with pytest.raises(CorpusError, match="absent"):
        ShardReader(tmp_path / "absent.arrow")


class FakeStore:
    """A remote store that shows a file when its one upload has ended."""

    files: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def of(cls, root: str) -> "FakeStore":
        assert root.startswith("s3://")
        return cls()

    def write_atomically(self, path: str, write: Callable[[BinaryIO], None]) -> None:
        buffer = io.BytesIO()
        write(buffer)
        self.files[path] = buffer.getvalue()

    def open_read(self, path: str) -> BinaryIO:
        return io.BytesIO(self.files[path])


@pytest.mark.usefixtures("small_batches")
def test_a_shard_at_a_url_is_uploaded_whole_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "Storage", FakeStore)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    documents = random_documents(seed=8, count=40)
    with ShardWriter("s3://bucket/train/0.arrow", np.uint16) as writer:
        append(writer, documents)
        stats = writer.close()
    assert stats == write(tmp_path / "local.arrow", documents)
    assert FakeStore.files["s3://bucket/train/0.arrow"] == (tmp_path / "local.arrow").read_bytes()
    assert list((tmp_path / "temporary").iterdir()) == []
    reader = ShardReader("s3://bucket/train/0.arrow", np.array(stats.batch_tokens))
    assert reader.tokens(90, 200).tolist() == np.concatenate(documents)[90:290].tolist()


def test_a_full_disk_leaves_no_temporary_file_even_where_closing_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sink: shards._HashedFile) -> None:
        sink._file.close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards._HashedFile, "close", fail)
    monkeypatch.setattr(shards, "BATCH_TOKENS", 10)

    def write() -> None:
        with ShardWriter(tmp_path / "0.arrow", np.uint16) as writer:
            writer.append(np.zeros(20, np.uint16), np.array([0, 20]), ["a"], [0], [20])
            assert len(list(tmp_path.iterdir())) == 1
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write()
    assert list(tmp_path.iterdir()) == []
