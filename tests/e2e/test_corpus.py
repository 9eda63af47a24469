"""Corpora by the commands a user types: several sources, a vocabulary of one's own, verify, and trace to the bytes."""

import functools
import gzip
import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
import zstandard

from gpt_core.corpus import manifest
from gpt_core.corpus.corpus import Corpus
from gpt_core.corpus.trace import trace_cell
from gpt_core.tokens.tokenizer import load_tokenizer
from tests.corpus_text import NUM_DOCUMENTS, NUM_REJECTED, write_sources
from tests.e2e.commands import Finished, herd
from tests.e2e.private_head import RAY_ADDRESS, PrivateHead

NUM_CELLS = int(os.environ.get("HERD_TRACE_CELLS", "1000"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources "web" and "books" in text/, and their corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    settings = {"sources": write_sources(folder / "text"), "shard_bytes": 20_000, "tracking": {"enabled": False}}
    (folder / "tokenize.yaml").write_text(yaml.safe_dump(settings))
    done = herd("tokenize", "--config", "tokenize.yaml", "--output", "corpus", folder=folder)
    assert done.code == 0, done.err
    found = manifest.read(str(folder / "corpus"))
    kept = sum(NUM_DOCUMENTS.values()) - NUM_REJECTED
    num_tokens, num_shards = found.splits["train"].num_tokens, found.splits["train"].num_shards
    assert done.out == (
        f"{folder}/corpus: {num_tokens:,} tokens of {kept} documents in {num_shards} shards, {NUM_REJECTED} set aside\n"
        f"root digest {found.root_digest}\n"
    )
    return folder


def test_verify_says_that_a_corpus_is_whole(folder: Path) -> None:
    done = herd("verify", "corpus", folder=folder)
    assert done.code == 0
    found = manifest.read(str(folder / "corpus"))
    num_bytes = found.splits["train"].num_bytes
    assert done.out == (
        f"{folder}/corpus: whole, {found.shards.num_rows} files, {num_bytes:,} bytes\nroot digest {found.root_digest}\n"
    )


def test_verify_names_file_batch_and_document_of_a_flipped_bit(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "corpus", tmp_path / "corpus")
    shard = tmp_path / "corpus" / "train" / "00000001.arrow"
    data = bytearray(shard.read_bytes())
    corpus = Corpus(str(tmp_path / "corpus"))
    row = corpus.manifest.shards.column("path").to_pylist().index("train/00000001.arrow")
    tokens = corpus.reader(row).document(0, 2).tokens
    place = data.find(np.ascontiguousarray(tokens).tobytes())
    assert place > 0
    data[place + 3] ^= 1 << 4
    shard.write_bytes(data)
    done = herd("verify", "corpus", folder=tmp_path)
    assert done.code == 2
    assert done.out == "train/00000001.arrow, batch 0, document 2: tokens do not match their checksum\n"
    assert done.err == (
        f"{tmp_path}/corpus: found 1 damaged place, the first in train/00000001.arrow; expected every bit as it was "
        "written; restore these files from a copy, or delete the corpus and tokenize again\n"
    )


def test_verify_of_a_folder_without_a_corpus_is_a_mistake(folder: Path) -> None:
    done = herd("verify", "text", folder=folder)
    assert done.code == 2
    assert done.err == (
        f"{folder}/text: found no manifest.json; expected a finished corpus; "
        "run `herd tokenize`, or name another folder\n"
    )


def test_trace_leads_from_a_step_to_documents_and_back(folder: Path) -> None:
    numbers = ["--context_tokens", "64", "--batch_sequences", "16"]
    done = herd("trace", "--corpus", "corpus", "--step", "3", "--row", "5", *numbers, folder=folder)
    assert done.code == 0, done.err
    head, first, *_ = done.out.splitlines()
    corpus = Corpus(str(folder / "corpus"))
    found = trace_cell(corpus, corpus.order(0, 64, 16), 2, 5)
    part = found.parts[0]
    assert head == f"step 3, row 5: source {found.source}, epoch {found.epoch}, window {found.window}"
    assert first == (
        f"  {part.id}  {folder}/text/{found.source}/{part.file} bytes {part.start}..{part.end}, "
        f"tokens {part.first_token}..{part.first_token + part.num_tokens} of {part.document_tokens}"
    )
    back = herd("trace", "--corpus", "corpus", "--document", part.id, *numbers, folder=folder)
    assert back.code == 0, back.err
    assert any(line.startswith("  step 3, row 5: tokens ") for line in back.out.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "1", "--row", "600"], "row: found 600; expected 0 to 15; name a row of the step\n"),
        (["--document", "train/00000000.arrow:99999"], "found row '99999'; expected a row of train/00000000.arrow"),
        (["--document", "train/x.arrow:0"], "found no shard 'train/x.arrow' in the split 'train'"),
        (["--step", "1"], "give step and row, or document"),
    ],
)
def test_a_question_that_has_no_answer_is_a_mistake(folder: Path, words: list[str], message: str) -> None:
    numbers = ["--context_tokens", "64", "--batch_sequences", "16"]
    done = herd("trace", "--corpus", "corpus", *numbers, *words, folder=folder)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


@functools.lru_cache(maxsize=64)
def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    match path.suffix:
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 26)
        case _:
            return data


@functools.lru_cache(maxsize=1024)
def _ids_of(path: Path, start: int, end: int) -> tuple[int, ...]:
    """Tokenize a document anew from the bytes a trace names."""
    data = _decompressed(path)[start:end]
    text = data.decode() if path.suffix == ".txt" else json.loads(data)["text"]
    tokenizer = load_tokenizer("gpt2")
    return (*tokenizer.encode(text).tolist(), tokenizer.end_of_text)


def test_the_bytes_a_trace_names_tokenize_to_the_ids_that_were_read(folder: Path) -> None:
    corpus = Corpus(str(folder / "corpus"))
    order = corpus.order(seed=4, window_tokens=64, sequences_per_step=16)
    rng = random.Random(9)
    seconds = 0.0
    sources = set()
    for _ in range(NUM_CELLS):
        step, row = rng.randrange(2000), rng.randrange(16)
        began = time.perf_counter()
        found = trace_cell(corpus, order, step, row)
        seconds += time.perf_counter() - began
        ids: list[int] = []
        for part in found.parts:
            document = _ids_of(folder / "text" / found.source / part.file, part.start, part.end)
            assert len(document) == part.document_tokens
            ids += document[part.first_token : part.first_token + part.num_tokens]
        assert ids == corpus.batch(order, step)[row].tolist()
        sources.add(found.source)
    assert sources == {"web", "books"}
    print(f"{NUM_CELLS} cells, {seconds / NUM_CELLS * 1e3:.2f} ms a query")  # noqa: T201
    assert seconds / NUM_CELLS < 0.05


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_vocabulary_of_ones_own_travels_with_the_corpus_and_the_checkpoint(
    folder: Path, tmp_path: Path, head: PrivateHead
) -> None:
    def run(*words: str) -> Finished:
        return Finished(*head.run(["herd", *words], tmp_path, RAY_ADDRESS=RAY_ADDRESS))

    text = str(folder / "text" / "books")
    done = run("train-tokenizer", "--input", text, "--vocabulary_size", "290", "--output", "own.tiktoken")
    assert done.code == 0, done.err
    digest = load_tokenizer(str(tmp_path / "own.tiktoken")).digest
    assert done.out == f"{tmp_path}/own.tiktoken: 290 ids, end of text included\ndigest {digest}\n"
    untracked = ["--tracking.enabled", "false"]
    words = ["--input", text, "--tokenizer.name", "own.tiktoken", "--validation_fraction", "0.2", *untracked]
    done = run("tokenize", *words, "--output", "made")
    assert done.code == 0, done.err
    (tmp_path / "own.tiktoken").unlink()
    (tmp_path / "made").rename(tmp_path / "corpus")
    assert manifest.read(str(tmp_path / "corpus")).tokenizer.digest == digest
    assert run("verify", "corpus").code == 0
    shape = ["--model.n_layer", "1", "--model.n_head", "1", "--model.n_embd", "16", "--model.num_positions", "16"]
    train = ["--train.num_steps", "4", "--train.batch_sequences", "4", "--train.micro_batch_sequences", "2"]
    done = run("pretrain", "--corpus", "corpus", "--output", "model", *shape, *train, *untracked)
    assert done.code == 0, done.err
    (tmp_path / "line.txt").write_text("over the hill and far away\n")
    endings = {"ctx": "over the", "endings": ["hill", "sea", "moon", "wall"], "label": 0}
    (tmp_path / "endings.jsonl").write_text(json.dumps(endings) + "\n")
    tasks = ["--tasks", "text=line.txt", "hellaswag=endings.jsonl"]
    words = ["--corpus", "corpus", "--max_windows", "4", *tasks, "--output", "measured", *untracked]
    done = run("evaluate", "--checkpoint", "model", *words)
    assert done.code == 0, done.err
    assert re.search(r"measured: loss \d.* on 64 tokens of the corpus\n", done.out)
    assert re.search(r"measured: line \(text\): loss \d.*, 7 words, 27 bytes\n", done.out)
    assert re.search(r"measured: endings \(hellaswag\): acc [01]\.0000.*, 1 items\n", done.out)
    shutil.rmtree(tmp_path / "corpus")
    (tmp_path / "prompts.txt").write_text("over the hill\n")
    words = ["--prompts", "prompts.txt", "--sampling.max_tokens", "4", "--output", "generated", *untracked]
    done = run("generate", "--checkpoint", "model", *words)
    assert done.code == 0, done.err
