"""Promises of gpt_core.tokens.token_texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.tokens.music import notes_of
from gpt_core.tokens.token_texts import find_notes, find_separator, text_of_token
from gpt_core.tokens.tokenizer import load_tokenizer

MUSIC = load_tokenizer("music")
SEPARATORS = ("<to-fr>", "<to-pt-br>", "TL;DR:", "[toCode]")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Hello", " <to-fr>", " Bonjour"], ("<to-fr>", 1, 2)),
        (["Hello", " <to-pt-br>", " Bom dia"], ("<to-pt-br>", 1, 2)),
        (["Long", " story", ". TL", ";", "DR", ": ", "short"], ("TL;DR:", 2, 6)),
        (["a", "[toCode]", "b", "[toCode]", "c"], ("[toCode]", 3, 4)),
        (["x", "TL;DR:"], ("TL;DR:", 1, 2)),
    ],
)
def test_the_last_separator_is_found_across_tokens(texts, expected):
    assert find_separator(texts, SEPARATORS) == dict(zip(("text", "start", "end"), expected, strict=True))


@pytest.mark.parametrize("texts", [[], ["no", " such"], ["<|endoftext|>"], ["1 < 2 > 0"], ["TL", "DR"]])
def test_a_text_without_separator_has_no_halves(texts):
    assert find_separator(texts, SEPARATORS) is None


def test_notes_last_from_on_to_off_with_the_velocity_set_before():
    low, high = find_notes(MUSIC.encode("v20 on60 t50 on64 off60 t100").tolist())
    assert low == {"pitch": 60, "velocity": 82, "start": 0.0, "end": pytest.approx(0.5), "token": 1}
    assert (high["pitch"], high["start"], high["end"]) == (64, pytest.approx(0.5), pytest.approx(1.5))


@given(st.lists(st.integers(0, 388), max_size=60))
def test_the_notes_are_those_the_music_itself_finds(events):
    found = find_notes(events)
    lasting = [note for note in found if note["end"] > note["start"] + 0.005]
    expected = {(n.start, n.pitch, n.end, n.velocity) for n in notes_of([event for event in events if event < 388])}
    for note in lasting:
        assert (round(note["start"] * 100), note["pitch"], round(note["end"] * 100), note["velocity"]) in expected
    assert len(found) >= len(expected)
    assert all(events[note["token"]] == note["pitch"] for note in found)


def test_an_event_reads_without_the_space_behind_it():
    assert text_of_token(60, MUSIC).text == "on60"


def test_end_of_text_is_named():
    gpt2 = load_tokenizer("gpt2")
    assert text_of_token(gpt2.end_of_text, gpt2).to_dict() == {"id": 50256, "text": "<|endoftext|>"}
