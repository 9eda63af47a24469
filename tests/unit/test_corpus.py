"""Corpus: windows are the concatenated documents, whatever shards and batches lie beneath."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.corpus.corpus import Corpus
from gpt_core.corpus.order import Cells
from gpt_core.errors import CorpusError
from tests.unit import tiny_corpus
from tests.unit.tiny_corpus import TinyCorpus

SOURCES = ("web", "books")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return tiny_corpus.build(tmp_path_factory.mktemp("corpus"))


def cells(sources: list[int], windows: list[int]) -> Cells:
    return Cells(np.array(sources), np.zeros(len(sources), np.int64), np.array(windows))


def sliced(tiny: TinyCorpus, split: str, cells: Cells, window_tokens: int) -> list[list[int]]:
    """Windows cut out of the concatenated documents held in memory."""
    streams = [tiny.stream(split, source) for source in SOURCES]
    return [
        streams[source][window * window_tokens : (window + 1) * window_tokens + 1].tolist()
        for source, window in zip(cells.sources, cells.windows, strict=True)
    ]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("window_tokens", [1, 7, 64, 200])
def test_every_window_is_its_part_of_the_concatenated_documents(
    tiny: TinyCorpus, split: str, window_tokens: int
) -> None:
    corpus = Corpus(str(tiny.folder), split)
    every = corpus.every_window(window_tokens)
    assert len(every) == corpus.num_windows(window_tokens)
    tokens = corpus.windows(every, window_tokens)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == sliced(tiny, split, every, window_tokens)


def test_a_batch_is_the_windows_the_order_names(tiny: TinyCorpus) -> None:
    corpus = Corpus(str(tiny.folder))
    order = corpus.order(seed=1, window_tokens=16, sequences_per_step=8)
    for step in (0, 3, 1000):
        expected = sliced(tiny, "train", order.cells(step), 16)
        assert corpus.batch(order, step).tolist() == expected
        assert corpus.batch(order, step, np.array([2, 5])).tolist() == [expected[2], expected[5]]


@settings(deadline=None)
@given(source=st.integers(0, 1), start=st.integers(-1, 2500), count=st.integers(0, 900))
def test_any_part_of_a_stream_reads_across_shards(tiny: TinyCorpus, source: int, start: int, count: int) -> None:
    corpus = Corpus(str(tiny.folder))
    stream = tiny.stream("train", SOURCES[source])
    if start < 0 or count < 1 or start + count > len(stream):
        with pytest.raises(IndexError):
            corpus.tokens(source, start, count)
    else:
        assert corpus.tokens(source, start, count).tolist() == stream[start : start + count].tolist()
    corpus.close()


def test_coordinates_point_at_the_window_in_its_shard(tiny: TinyCorpus) -> None:
    corpus = Corpus(str(tiny.folder))
    every = corpus.every_window(32)
    found = corpus.coordinates(every, 32)
    expected = [window[0] for window in sliced(tiny, "train", every, 32)]
    readers = [corpus.reader(int(shard)) for shard in found.shards]
    first = [int(r.tokens(int(o), 1)[0]) for r, o in zip(readers, found.offsets, strict=True)]
    assert first == expected


def test_coordinates_need_no_shard(tiny: TinyCorpus, tmp_path: Path) -> None:
    for name in ("manifest.json", "shards.arrow"):
        (tmp_path / name).write_bytes((tiny.folder / name).read_bytes())
    corpus = Corpus(str(tmp_path))
    order = corpus.order(seed=1, window_tokens=16, sequences_per_step=8)
    assert len(corpus.coordinates(order.cells(1_000_000), 16).shards) == 8


def test_open_shards_stay_bounded(tiny: TinyCorpus) -> None:
    corpus = Corpus(str(tiny.folder), max_open_shards=2)
    every = corpus.every_window(16)
    assert corpus.windows(every, 16).tolist() == sliced(tiny, "train", every, 16)
    assert len(corpus._readers) == 2


def test_weights_of_the_manifest_are_the_default(tiny: TinyCorpus) -> None:
    order = Corpus(str(tiny.folder)).order(seed=1, window_tokens=16, sequences_per_step=8)
    assert order.mixture.counts.tolist() == [3, 1]


def test_sources_not_named_in_weights_are_not_read(tiny: TinyCorpus) -> None:
    order = Corpus(str(tiny.folder)).order(1, 16, 8, weights={"books": 1})
    assert order.mixture.counts.tolist() == [0, 1]


def test_an_unknown_source_in_weights_is_refused(tiny: TinyCorpus) -> None:
    with pytest.raises(CorpusError, match="found source 'wiki'; expected one of: web, books"):
        Corpus(str(tiny.folder)).order(1, 16, 8, weights={"wiki": 1})


def test_a_corpus_smaller_than_a_window_or_a_batch_is_refused(tiny: TinyCorpus) -> None:
    corpus = Corpus(str(tiny.folder))
    with pytest.raises(CorpusError, match="at least one window, 100001 tokens"):
        corpus.order(1, 100_000, 1)
    with pytest.raises(CorpusError, match="at least one batch, 9000 windows"):
        corpus.order(1, 16, 9000)


def test_a_split_that_is_not_there_is_refused(tiny: TinyCorpus) -> None:
    with pytest.raises(CorpusError, match=r"no split 'test'; expected one of: train, .*--validation_fraction"):
        Corpus(str(tiny.folder), "test")


def test_a_shard_that_is_gone_is_named(tiny: TinyCorpus, tmp_path: Path) -> None:
    for path in tiny.folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CorpusError, match=r"train/00000000\.arrow"):
        Corpus(str(tmp_path)).windows(cells([0], [0]), 16)
