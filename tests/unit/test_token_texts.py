"""Promises of gpt_core.token_texts."""

import pytest

from gpt_core.token_texts import find_notes, find_separator, text_of_token
from gpt_core.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Hello", " <to-fr>", " Bonjour"], ("<to-fr>", 1, 2)),
        (["Long", " story", ". TL", ";", "DR", ": ", "short"], ("TL;DR:", 2, 6)),
        (["a", "[toCode]", "b", "[toCode]", "c"], ("[toCode]", 3, 4)),
        (["x", "TL;DR:"], ("TL;DR:", 1, 2)),
    ],
)
def test_the_last_separator_is_found_across_tokens(texts, expected):
    assert find_separator(texts) == dict(zip(("text", "start", "end"), expected, strict=True))


@pytest.mark.parametrize("texts", [[], ["no", " such"], ["<|endoftext|>"], ["1 < 2 > 0"], ["TL", "DR"]])
def test_a_text_without_separator_has_no_halves(texts):
    assert find_separator(texts) is None


def test_notes_last_from_on_to_off_with_the_velocity_set_before():
    events = ["SET_VELOCITY<20>", "NOTE_ON<60>", "TIME_SHIFT<50>", "NOTE_ON<64>", "NOTE_OFF<60>", "TIME_SHIFT<100>"]
    low, high = find_notes(events)
    assert low == {"pitch": 60, "velocity": 80, "start": 0.0, "end": pytest.approx(0.5), "token": 1}
    assert (high["pitch"], high["start"], high["end"]) == (64, pytest.approx(0.5), pytest.approx(1.5))


def test_text_about_notes_is_no_music():
    assert find_notes(["the", " event", " NOTE_ON", " is", " 60"]) == []


def test_end_of_text_is_named():
    gpt2 = load_tokenizer("gpt2")
    assert text_of_token(gpt2.end_of_text, gpt2).to_dict() == {"id": 50256, "text": "<|endoftext|>"}
