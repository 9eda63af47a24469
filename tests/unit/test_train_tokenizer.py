"""Promises of gpt_core.tokens.train_tokenizer."""

import collections
import importlib.util
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from gpt_core.errors import CorpusError, ResourceError, SettingsError, StaleOutputError
from gpt_core.settings import TrainTokenizerSettings
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.tokens.train_tokenizer import train_ranks, write_ranks
from jobs import train_tokenizer as train_job

needs_rustbpe = pytest.mark.skipif(
    importlib.util.find_spec("rustbpe") is None, reason="pip install rustbpe to train vocabularies"
)
TEXTS = ["the cat sat on the mat, the cat sat", "the hat, the hat! 123 123", "ünïcode ünïcode"]


def plain_bpe(words: list[bytes], num_merges: int) -> list[bytes]:
    """Return the merges of textbook BPE, most frequent pair first."""
    counts = collections.Counter(tuple(bytes([byte]) for byte in word) for word in words)
    merges = []
    for _ in range(num_merges):
        pairs: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
        for word, count in counts.items():
            for pair in pairwise(word):
                pairs[pair] += count
        pair = pairs.most_common(1)[0][0]
        merges.append(pair[0] + pair[1])
        counts = collections.Counter({_merged(word, pair): number for word, number in counts.items()})
    return merges


def _merged(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    merged: list[bytes] = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return tuple(merged)


@needs_rustbpe
def test_merges_are_those_of_textbook_bpe() -> None:
    # Counts that never tie, so that there is one right order of merges.
    words = [" abcd"] * 7 + [" abc"] * 40 + [" ab"] * 300 + [" a"] * 50
    ranks = train_ranks(["".join(words)], 257 + 4)

    learned = sorted(ranks, key=lambda token: ranks[token])[256:]
    assert learned == plain_bpe([word.encode() for word in words], 4) == [b" a", b" ab", b" abc", b" abcd"]


@needs_rustbpe
def test_a_trained_vocabulary_is_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "own.tiktoken"
    write_ranks(path, train_ranks(TEXTS, 257 + 15))
    tokenizer = load_tokenizer(str(path))

    assert tokenizer.vocabulary_size == 272
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in TEXTS)
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0])


@needs_rustbpe
def test_training_is_repeatable() -> None:
    assert train_ranks(TEXTS, 270) == train_ranks(iter(TEXTS), 270)


@needs_rustbpe
def test_the_smallest_vocabulary_is_the_bytes() -> None:
    assert train_ranks(TEXTS, 257) == {bytes([byte]): byte for byte in range(256)}


@needs_rustbpe
def test_hostile_text_is_trained_on() -> None:
    assert len(train_ranks([" \n" * 1_000_000 + "x", "\ud800a", ""], 258)) == 257


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(SettingsError, match="found 256; expected at least 257"):
        train_ranks(TEXTS, 256)


@needs_rustbpe
def test_too_little_text_says_how_much_there_is() -> None:
    with pytest.raises(CorpusError, match=r"found text for 2 merges only; expected 743 merges .* 259 at most"):
        train_ranks(["abc"], 1000)


def test_a_missing_trainer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rustbpe", None)

    with pytest.raises(ResourceError, match="pip install rustbpe"):
        train_ranks(TEXTS, 300)


@needs_rustbpe
def test_the_command_says_how_many_documents_it_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "broken", '{"body": 1}']))
    asked = {"input": [str(tmp_path / "a.jsonl")], "output": str(tmp_path / "own"), "vocabulary_size": 260}
    said = train_job.main(TrainTokenizerSettings.model_validate(asked)).splitlines()

    assert len(said) == 3
    start = sum(len(line) + 1 for line in lines)
    assert said[1].startswith(f"left out 2 documents; the first, a.jsonl, byte {start}: found broken JSON")


@needs_rustbpe
def test_another_vocabulary_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(TEXTS))

    def run(vocabulary_size: int) -> str:
        asked = {"input": [str(tmp_path / "a.txt")], "output": str(tmp_path / "own")}
        return train_job.main(TrainTokenizerSettings.model_validate({**asked, "vocabulary_size": vocabulary_size}))

    assert run(260) == run(260)
    whole = (tmp_path / "own").read_bytes()
    with pytest.raises(StaleOutputError, match="found 260 ids of other text or settings; expected those 261 ids"):
        run(261)
    assert (tmp_path / "own").read_bytes() == whole
