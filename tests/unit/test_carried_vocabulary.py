"""A vocabulary of one's own lies in the corpus and in each checkpoint, and is proved there."""

import json
from pathlib import Path

import pytest
import torch

from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import ManifestContents, TokenizerEntry
from gpt_core.corpus.verify import verify
from gpt_core.errors import CheckpointError
from gpt_core.exchange.huggingface import export_model, import_run
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.tokens.train_tokenizer import write_ranks
from gpt_core.tokens.vocabulary import VOCABULARY
from gpt_core.training import checkpoint

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257}
SHAPE = ModelShape(n_layer=1, n_head=1, n_embd=8, num_positions=8, vocabulary_size=259)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The manifest and the vocabulary of a corpus without shards."""
    folder = tmp_path / "corpus"
    write_ranks(folder / VOCABULARY, RANKS)
    digest = load_tokenizer(str(folder / VOCABULARY)).digest
    contents = ManifestContents({}, "", {}, TokenizerEntry(VOCABULARY, digest, 259, 258), [], [], 0)
    manifest.write(str(folder), contents)
    return folder


def test_a_moved_corpus_finds_its_vocabulary(corpus: Path, tmp_path: Path) -> None:
    moved = corpus.rename(tmp_path / "elsewhere")
    found = manifest.read(str(moved)).tokenizer
    assert json.loads((moved / "manifest.json").read_text())["tokenizer"]["name"] == VOCABULARY
    assert load_tokenizer(found.name).digest == found.digest
    assert verify(str(moved)) == []


def test_every_flipped_bit_of_a_carried_vocabulary_is_found(corpus: Path) -> None:
    file = corpus / VOCABULARY
    data = file.read_bytes()
    for place in range(0, len(data), 97):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        assert [damage.file for damage in verify(str(corpus))] == [VOCABULARY]
    file.unlink()
    assert [damage.file for damage in verify(str(corpus))] == [VOCABULARY]


def test_a_checkpoint_outlives_the_corpus_its_vocabulary_came_from(corpus: Path, tmp_path: Path) -> None:
    tokenizer = manifest.read(str(corpus)).tokenizer
    described = {"name": tokenizer.name, "digest": tokenizer.digest, "vocabulary_size": 259, "end_of_text": 258}
    description = checkpoint.Description(step=1, tokens=1, shape=SHAPE, tokenizer=described)
    written = checkpoint.write(tmp_path / "run", description, {"w": torch.zeros(2)}, {"m": torch.zeros(2)})
    (corpus / VOCABULARY).unlink()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    loaded = checkpoint.load(moved)
    assert load_tokenizer(loaded.tokenizer["name"]).digest == tokenizer.digest
    Path(str(loaded.path), VOCABULARY).write_bytes(b"AA== 0\n")
    with pytest.raises(CheckpointError, match=VOCABULARY):
        checkpoint.load(loaded.path)
    assert written.name == "step-00000001"


def test_an_imported_model_outlives_the_vocabulary_it_was_given_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {name: weight.detach() for name, weight in GPT(SHAPE).initialise(0).named_parameters()}
    model = export_model(checkpoint.Checkpoint(tmp_path, checkpoint.Description(1, 1, SHAPE), weights), tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    write_ranks("own.tiktoken", RANKS)
    digest = load_tokenizer("own.tiktoken").digest
    written = import_run(model, tmp_path / "run", "own.tiktoken")
    Path("own.tiktoken").unlink()
    found = checkpoint.load(written).tokenizer["name"]
    assert found == str(written / VOCABULARY)
    assert load_tokenizer(found).digest == digest
