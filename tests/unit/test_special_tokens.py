"""Promises of special tokens: past the vocabulary, tokens in prompts, text in documents, carried by the ranks file."""

import numpy as np
import pytest

from cluster.serving.completions_schema import ServedModel, parse_completions, parse_tokenize
from gpt_core.errors import CorpusError
from gpt_core.exchange.huggingface import write_tokenizer
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.tokens.train_tokenizer import write_ranks
from gpt_core.tokens.vocabulary import END_OF_TEXT, format_ranks, read_vocabulary

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
SPECIALS = ("<to-fr>", "[toCode]")


@pytest.fixture
def tokenizer(tmp_path):
    write_ranks(tmp_path / "v.tiktoken", RANKS, SPECIALS)
    return load_tokenizer(str(tmp_path / "v.tiktoken"))


def test_their_ids_follow_end_of_text(tokenizer):
    assert (tokenizer.end_of_text, tokenizer.vocabulary_size, tokenizer.specials) == (257, 260, SPECIALS)
    assert tokenizer.decode([256, 258, 259, 257]) == f"ab<to-fr>[toCode]{END_OF_TEXT}"


def test_they_are_tokens_in_prompts_and_text_in_documents(tokenizer):
    spelled = list(b"<to-fr>")
    assert tokenizer.encode_prompt("ab <to-fr>[toCode]x").tolist() == [256, ord(" "), 258, 259, ord("x")]
    assert tokenizer.encode("ab <to-fr>").tolist() == [256, ord(" "), *spelled]
    assert tokenizer.encode_many(["<to-fr>"])[0].tolist() == spelled
    assert tokenizer.encode_prompt(END_OF_TEXT).tolist() == tokenizer.encode(END_OF_TEXT).tolist()
    assert tokenizer.encode_prompt("").tolist() == []


@pytest.mark.parametrize("specials", [("=>", "=>>"), ("=>>", "=>")])
def test_of_special_tokens_that_begin_alike_the_longest_is_taken(tmp_path, specials):
    write_ranks(tmp_path / "v.tiktoken", RANKS, specials)
    tokenizer = load_tokenizer(str(tmp_path / "v.tiktoken"))
    short, long = (258 + specials.index(special) for special in ("=>", "=>>"))
    assert tokenizer.encode_prompt("a=>>b=>").tolist() == [ord("a"), long, ord("b"), short]


def test_a_vocabulary_without_them_encodes_prompts_as_documents():
    for name in ("bytes", "gpt2"):
        plain = load_tokenizer(name)
        assert plain.specials == ()
        assert np.array_equal(plain.encode_prompt("ab <to-fr>"), plain.encode("ab <to-fr>"))


def test_they_change_the_digest_and_leave_that_of_a_plain_vocabulary_alone(tokenizer, tmp_path):
    write_ranks(tmp_path / "plain.tiktoken", RANKS)
    plain = load_tokenizer(str(tmp_path / "plain.tiktoken"))
    assert plain.digest != tokenizer.digest
    assert (tmp_path / "plain.tiktoken").read_bytes() == format_ranks(RANKS)
    assert (tmp_path / "v.tiktoken").read_bytes().startswith(format_ranks(RANKS))
    assert read_vocabulary(tmp_path / "v.tiktoken") == (RANKS, SPECIALS)


def test_a_service_reads_them_in_prompts(tokenizer):
    model = ServedModel("m", tokenizer, 16, "", 0)
    assert parse_tokenize({"prompt": "ab <to-fr>"}, model) == [256, ord(" "), 258]
    (request,) = parse_completions({"prompt": "ab <to-fr>"}, model, 1).requests
    assert request.prompt_ids == (256, ord(" "), 258)


def test_ids_with_a_gap_are_refused(tmp_path):
    path = tmp_path / "v.tiktoken"
    path.write_bytes(format_ranks(RANKS) + b"PHg+ 259 special\n")
    with pytest.raises(CorpusError, match=r"special tokens of ids \[259\]; expected ids 258"):
        load_tokenizer(str(path))


def test_one_that_is_no_text_is_refused_by_its_line(tmp_path):
    path = tmp_path / "v.tiktoken"
    path.write_bytes(format_ranks(RANKS) + b"/w== 258 special\n")  # the byte 0xff
    with pytest.raises(CorpusError, match=r"v\.tiktoken:258: found b'/w== 258 special'"):
        load_tokenizer(str(path))


def test_the_hugging_face_tokenizer_of_an_export_gives_the_same_ids(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", tokenizer.name, 64)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for prompt in ("ab <to-fr> cab", "[toCode]", "ab<to-fr>[toCode] "):
        assert exported(prompt)["input_ids"] == tokenizer.encode_prompt(prompt).tolist()
