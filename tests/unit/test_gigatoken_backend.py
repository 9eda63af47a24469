"""Promises of gpt_core.tokens.gigatoken_backend: the reference's ids, faster, in bounded memory."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.tokens import gigatoken_backend
from gpt_core.tokens.tokenizer import TiktokenTokenizer, has_gigatoken, load_tokenizer
from gpt_core.tokens.vocabulary import format_ranks, gpt2_ranks

pytestmark = pytest.mark.skipif(not has_gigatoken(), reason="pip install gigatoken to test the fast backend")

REFERENCE = TiktokenTokenizer("gpt2", gpt2_ranks())
FAST = load_tokenizer("gpt2", "gigatoken")
# Text that tokenizers get wrong: contractions, white space at the ends, digits, marks, joiners, specials.
ALPHABET = "aZ9 '\n\t\r\u00a0\u3000\u200d\u0301é日🧿!<|>s\x00\x1c\x85ß\u0661²"
AWKWARD = st.lists(st.text(ALPHABET) | st.text() | st.just("<|endoftext|>"), max_size=8)


@given(AWKWARD)
def test_ids_are_the_references(texts: list[str]) -> None:
    expected_flat, expected_offsets = REFERENCE.encode_many(texts)
    flat, offsets = FAST.encode_many(texts)

    assert flat.dtype == expected_flat.dtype == np.uint16
    assert flat.tolist() == expected_flat.tolist()
    assert offsets.tolist() == expected_offsets.tolist()


def test_lone_surrogates_encode_as_in_the_reference() -> None:
    assert FAST.encode("a\ud800b").tolist() == REFERENCE.encode("a\ud800b").tolist()


def test_everything_but_the_encoder_is_the_references() -> None:
    assert FAST.digest == REFERENCE.digest
    assert (FAST.vocabulary_size, FAST.end_of_text, FAST.dtype) == (50257, 50256, np.uint16)
    assert FAST.decode([15496, 995]) == "Hello world"
    assert FAST.decode_bytes([50256]) == b"<|endoftext|>"
    assert (FAST.backend, REFERENCE.backend) == ("gigatoken", "tiktoken")


def test_a_long_white_space_run_encodes_as_in_the_reference() -> None:
    text = "a" + " \n" * 700_000 + "b"

    assert np.array_equal(FAST.encode(text), REFERENCE.encode(text))


def test_the_encoder_is_rebuilt_when_memory_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = gigatoken_backend.build_encoder
    monkeypatch.setattr(gigatoken_backend, "build_encoder", lambda ranks: built.append(0) or build(ranks))
    monkeypatch.setattr(gigatoken_backend, "MAX_GROWTH_BYTES", -1)
    fast = gigatoken_backend.GigatokenTokenizer(REFERENCE)

    assert [fast.encode("Hello world").tolist() for _ in range(3)] == [[15496, 995]] * 3
    assert len(built) == 3


def test_a_ranks_file_works_in_both_backends(tmp_path: Path) -> None:
    path = tmp_path / "own.tiktoken"
    path.write_bytes(format_ranks({bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b" ab": 257}))
    fast, reference = load_tokenizer(str(path), "auto"), load_tokenizer(str(path))

    assert fast.backend == "gigatoken"
    assert fast.encode("ab ab cab").tolist() == reference.encode("ab ab cab").tolist()
    assert fast.digest == reference.digest


def test_a_pickle_keeps_the_backend() -> None:
    assert pickle.loads(pickle.dumps(FAST)).backend == "gigatoken"
