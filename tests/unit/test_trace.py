"""Trace: a cell leads to the bytes of text it read, and a document to every cell that reads it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import tokenizing
from gpt_core.corpus import manifest, shards
from gpt_core.corpus.corpus import Corpus
from gpt_core.corpus.manifest import FileEntry, ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.order import Order
from gpt_core.corpus.shards import ShardWriter
from gpt_core.corpus.tokenize_shard import ShardTokenizer
from gpt_core.corpus.trace import CellTrace, trace_cell, trace_document
from gpt_core.errors import CorpusError
from gpt_core.model.presets import ModelShape
from gpt_core.settings import TokenizeSettings, TraceSettings
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description
from jobs import trace as trace_job

END_OF_TEXT = 256
WEIGHTS = {"web": 2.0, "books": 1.0}


def write_source(folder: Path, name: str, random: np.random.Generator) -> list[tuple[int, int]]:
    """Write one text file of lines of any length, and return where each document lies in it."""
    lengths = random.integers(0, 60, 50)
    bounds, data = [], bytearray()
    for length in lengths:
        bounds.append((len(data), len(data) + int(length)))
        data += random.integers(97, 123, length).astype(np.uint8).tobytes() + b"\n"
    (folder / name).write_bytes(data)
    return bounds


def write_shard(folder: Path, name: str, plan: int, bounds: list[tuple[int, int]]) -> shards.ShardStats:
    """Tokenize by hand: a byte is its own id, 256 ends a document."""
    data = (folder / "in" / name).read_bytes()
    with ShardWriter(folder / f"train/{plan:08d}.arrow", np.uint16) as writer:
        for start, end in bounds:
            tokens = np.array([*data[start:end], END_OF_TEXT], np.uint16)
            writer.append(tokens, np.array([0, len(tokens)]), [name], [start], [end])
        return writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    (folder / "in").mkdir()
    random = np.random.default_rng(3)
    entries, files = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_TOKENS", 300)
        for plan in range(6):
            name, source = f"{plan}.txt", "web" if plan < 4 else "books"
            bounds = write_source(folder / "in", name, random)
            stats = write_shard(folder, name, plan, bounds)
            entries.append(ShardEntry("train", source, plan, f"train/{plan:08d}.arrow", stats))
            files.append(FileEntry(source, str(folder / "in"), name, 1))
    tokenizer = TokenizerEntry("bytes", "", 257, END_OF_TEXT)
    manifest.write(str(folder), ManifestContents({}, "", WEIGHTS, tokenizer, entries, files, 300))
    return folder


@pytest.fixture
def corpus(folder: Path) -> Corpus:
    return Corpus(str(folder))


def order_of(corpus: Corpus, window_tokens: int = 40) -> Order:
    return corpus.order(seed=7, window_tokens=window_tokens, sequences_per_step=4)


def tokens_of(folder: Path, trace: CellTrace) -> list[int]:
    """Read the source bytes again and tokenize them again."""
    tokens: list[int] = []
    for part in trace.parts:
        document = [*(folder / "in" / part.file).read_bytes()[part.start : part.end], END_OF_TEXT]
        assert part.document_tokens == len(document)
        assert part.num_tokens > 0
        tokens += document[part.first_token : part.first_token + part.num_tokens]
    return tokens


@pytest.mark.parametrize("window_tokens", [1, 40, 700])
def test_the_bytes_a_cell_is_traced_to_tokenize_to_what_it_read(
    folder: Path, corpus: Corpus, window_tokens: int
) -> None:
    order = order_of(corpus, window_tokens)
    for step in [*range(50), 10**6]:
        read = corpus.batch(order, step).tolist()
        for row in range(4):
            trace = trace_cell(corpus, order, step, row)
            assert tokens_of(folder, trace) == read[row]
            assert {part.file for part in trace.parts} <= (
                {"0.txt", "1.txt", "2.txt", "3.txt"} if trace.source == "web" else {"4.txt", "5.txt"}
            )


def test_a_document_is_traced_to_exactly_the_cells_whose_trace_names_it(corpus: Corpus) -> None:
    order = order_of(corpus)
    readers: dict[str, list[tuple[int, int, int, int]]] = {}
    num_steps = 2 * sum(order.num_windows) // 4  # beyond the first epoch of both sources
    for step in range(num_steps):
        for row in range(4):
            trace = trace_cell(corpus, order, step, row)
            for part in trace.parts if trace.epoch == 0 else ():
                readers.setdefault(part.id, []).append((step, row, part.first_token, part.num_tokens))
    assert len(readers) > 250
    for document, expected in readers.items():
        found = trace_document(corpus, order, document)
        assert [(r.step, r.row, r.first_token, r.num_tokens) for r in found] == expected


def test_every_token_of_a_document_is_read_in_every_epoch(corpus: Corpus) -> None:
    order = order_of(corpus)
    for epoch in (0, 3):
        for number in range(50):
            readings = trace_document(corpus, order, f"train/00000002.arrow:{number}", epoch)
            read = {token for r in readings for token in range(r.first_token, r.first_token + r.num_tokens)}
            assert read == set(range(max(read) + 1))
            assert all(order.cell(r.step, r.row).epoch == epoch for r in readings)


def test_a_document_of_a_source_of_weight_zero_is_read_nowhere(corpus: Corpus) -> None:
    order = corpus.order(7, 40, 4, weights={"web": 1})
    assert trace_document(corpus, order, "train/00000005.arrow:0") == []


@pytest.mark.parametrize(
    "document", ["train/00000002.arrow:50", "train/00000002.arrow:-1", "train/00000002.arrow:x", "train/9.arrow:0", "x"]
)
def test_a_document_that_is_not_there_is_refused(corpus: Corpus, document: str) -> None:
    with pytest.raises(CorpusError, match="herd trace --step"):
        trace_document(corpus, order_of(corpus), document)


def test_files_are_named_whole_and_places_in_tables_are_rows(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    pq.write_table(pa.table({"text": ["a" * 20] * 5}), tmp_path / "in" / "deep" / "t.parquet")
    (tmp_path / "in" / "u.txt").write_text("b" * 20)
    given = {"input": [str(tmp_path / "in")], "output": str(tmp_path / "out"), "tokenizer": {"name": "bytes"}}
    settings = TokenizeSettings.model_validate(given)
    inputs = tokenizing.resolve(settings)
    rows = [ShardTokenizer(tokenizing.options_for(settings, inputs, "bytes"))(plan) for plan in inputs.plans]
    manifest.write(settings.output, tokenizing.contents_of(settings, inputs, lambda: rows, "bytes"))
    asked = {"corpus": settings.output, "context_tokens": 120, "batch_sequences": 1, "step": 1, "row": 0}
    _, *lines = trace_job.main(TraceSettings.model_validate(asked)).splitlines()

    assert lines[1] == f"  train/00000000.arrow:1  {tmp_path}/in/deep/t.parquet rows 1..2, tokens 0..21 of 21"
    assert lines[5] == f"  train/00000000.arrow:5  {tmp_path}/in/u.txt bytes 0..20, tokens 0..16 of 21"


def test_steps_beyond_the_end_of_a_run_are_told_apart(folder: Path, corpus: Corpus, tmp_path: Path) -> None:
    document = "train/00000002.arrow:7"
    first, *_, last = (reading.step + 1 for reading in trace_document(corpus, order_of(corpus), document))
    assert first < last
    settings = {"seed": 7, "window_tokens": 40, "batch_sequences": 4, "num_steps": last - 1}
    shape = ModelShape(1, 1, 8, num_positions=8, vocabulary_size=257)
    checkpoint.write(tmp_path, Description(step=1, tokens=160, shape=shape, settings=settings), {}, {})

    def asked(**question: Any) -> str:
        given = {"corpus": str(folder), "run": str(tmp_path), **question}
        return trace_job.main(TraceSettings.model_validate(given)).splitlines()[0]

    assert "ends" not in asked(step=last - 1, row=0)
    assert asked(step=last, row=0).endswith(f"; the run ends at step {last - 1}, a longer one would read")
    assert asked(document=document).endswith(f"of epoch 0; the run ends at step {last - 1}, before 1 of them")
