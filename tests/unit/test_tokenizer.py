"""Promises of gpt_core.tokens.tokenizer."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.errors import SettingsError
from gpt_core.tokens.tokenizer import Tokenizer, load_tokenizer, split_long_space
from gpt_core.tokens.vocabulary import format_ranks

# Ids printed in public documents: Hugging Face's GPT-2 documentation and OpenAI's cookbook (r50k_base there,
# which has GPT-2's ranks).
PUBLISHED_IDS = {
    "Hello world": [15496, 995],
    " Hello world": [18435, 995],
    "hello world": [31373, 995],
    "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
    "Hello, I'm a language model,": [15496, 11, 314, 1101, 257, 3303, 2746, 11],
    "antidisestablishmentarianism": [415, 29207, 44390, 3699, 1042],
    "2 + 2 = 4": [17, 1343, 362, 796, 604],
    "お誕生日おめでとう": [
        2515,
        232,
        45739,
        243,
        37955,
        33768,
        98,
        2515,
        232,
        1792,
        223,
        30640,
        30201,
        29557,
    ],
    "<|endoftext|>": [27, 91, 437, 1659, 5239, 91, 29],
    "": [],
}


@pytest.fixture(params=["gpt2", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(request.param)


@pytest.mark.parametrize("text", PUBLISHED_IDS)
def test_gpt2_ids_are_the_published_ones(text: str) -> None:
    assert load_tokenizer("gpt2").encode(text).tolist() == PUBLISHED_IDS[text]


def test_gpt2_knows_its_sizes() -> None:
    gpt2 = load_tokenizer("gpt2")

    assert (gpt2.vocabulary_size, gpt2.end_of_text, gpt2.dtype) == (50257, 50256, np.uint16)


def test_bytes_are_their_own_ids() -> None:
    tokenizer = load_tokenizer("bytes")

    assert tokenizer.encode("Aé").tolist() == [0x41, 0xC3, 0xA9]
    assert (tokenizer.vocabulary_size, tokenizer.end_of_text, tokenizer.dtype) == (257, 256, np.uint16)


@given(st.text())
def test_any_text_survives_the_round_trip(text: str) -> None:
    for name in ("gpt2", "bytes"):
        tokenizer = load_tokenizer(name)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.text(), max_size=5))
def test_many_texts_encode_as_one_by_one(texts: list[str]) -> None:
    for name in ("gpt2", "bytes"):
        tokenizer = load_tokenizer(name)
        flat, offsets = tokenizer.encode_many(texts)

        assert (flat.dtype, offsets.dtype, len(offsets)) == (tokenizer.dtype, np.int64, len(texts) + 1)
        for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
            assert flat[start:end].tolist() == tokenizer.encode(text).tolist()


def test_a_literal_end_of_text_is_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|endoftext|>b")

    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_the_end_of_text_token_is_readable(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_half_a_character_decodes_to_a_replacement_character_and_its_exact_bytes(
    tokenizer: Tokenizer,
) -> None:
    first_byte = tokenizer.encode("é" if tokenizer.name == "bytes" else "\U0001f9ff")[:1]

    assert tokenizer.decode(first_byte) == "\ufffd"
    assert tokenizer.decode_bytes(first_byte)[0] in {0xC3, 0xF0}


@pytest.mark.parametrize("token", [-1, 60000])
def test_an_unknown_id_is_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(SettingsError, match=f"found token id {token}; expected ids from 0 to"):
        tokenizer.decode([token])


def test_a_run_of_a_million_spaces_encodes_as_a_shorter_one_does() -> None:
    gpt2 = load_tokenizer("gpt2")
    run = "\n \u3000" * 600_000
    ids = gpt2.encode(f"a{run}word")

    assert gpt2.decode(ids) == f"a{run}word"
    assert ids[-1] == gpt2.encode("\u3000word")[-1]


@given(st.lists(st.sampled_from(["a", "b 1", "é", " " * 70_000, "\n" * 66_000 + " ", "'s"]), max_size=6))
@settings(max_examples=40, deadline=None)
def test_cutting_inside_long_white_space_keeps_the_ids(pieces: list[str]) -> None:
    gpt2 = load_tokenizer("gpt2")
    text = "".join(pieces)
    parts = split_long_space(text)

    assert "".join(parts) == text
    assert np.concatenate([gpt2.encode(part) for part in parts]).tolist() == gpt2.encode(text).tolist()


def test_a_ranks_file_is_a_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "own.tiktoken"
    path.write_bytes(format_ranks({bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abc": 257}))
    tokenizer = load_tokenizer(str(path))

    assert tokenizer.encode("abcd ab").tolist() == [257, 100, 32, 256]
    assert (tokenizer.vocabulary_size, tokenizer.end_of_text) == (259, 258)


def test_a_large_vocabulary_gets_wide_ids(tmp_path: Path) -> None:
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [first + second for first in tokens for second in tokens]
    path = tmp_path / "wide.tiktoken"
    path.write_bytes(format_ranks({token: rank for rank, token in enumerate(tokens)}))
    tokenizer = load_tokenizer(str(path))

    assert tokenizer.dtype is np.uint32
    assert tokenizer.encode("ab").tolist() == [256 + ord("a") * 256 + ord("b")]


def test_an_unknown_name_lists_what_is_known() -> None:
    with pytest.raises(SettingsError, match=r"tokenizer 'gpt5': .*'gpt2', 'bytes', 'music' or a ranks file"):
        load_tokenizer("gpt5")


def test_a_pickle_is_a_name_and_loads_to_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    pickled = pickle.dumps(tokenizer)

    assert len(pickled) < 200
    assert pickle.loads(pickled).digest == tokenizer.digest
