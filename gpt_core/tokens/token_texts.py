"""What tokens look like to people: their texts, the halves of a task's prompt, the notes of music.

Pure functions; used by ``inspection.py`` for the page.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from gpt_core.tokens.music import STEPS_PER_SECOND, WORDS, bin_velocity
from gpt_core.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token as a person reads it."""

    id: int
    text: str
    """The token's characters, or where it holds no whole ones its bytes as ``\\xe2\\x80``."""
    is_partial: bool
    """True where the token is not whole characters."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; ``partial`` is there only where it is true."""
        plain: dict[str, Any] = {"id": self.id, "text": self.text}
        return {**plain, "partial": True} if self.is_partial else plain


def text_of_token(token: int, tokenizer: Tokenizer) -> TokenText:
    """Return how one token reads."""
    data = tokenizer.decode_bytes([token])
    try:
        text = data.decode("utf-8")
        return TokenText(token, text.rstrip() if tokenizer.backend == "music" else text, is_partial=False)
    except UnicodeDecodeError:
        return TokenText(token, "".join(f"\\x{byte:02x}" for byte in data), is_partial=True)


def find_separator(texts: Sequence[str], separators: Collection[str]) -> dict[str, Any] | None:
    """Return what parts source and target, or None: its text, the index of its first token and the one behind it.

    Of several, as in a prompt with examples, the last: its halves are the task at hand.

    Args:
        texts: The tokens'.
        separators: The words that part them, such as a translation's <to-fr>; one or more.
    """
    words = "|".join(map(re.escape, sorted(separators, key=len, reverse=True)))
    found = list(re.finditer(words, "".join(texts)))
    if not found:
        return None
    ends = list(accumulate(map(len, texts)))
    first = next(index for index, end in enumerate(ends) if end > found[-1].start())
    last = next(index for index, end in enumerate(ends) if end >= found[-1].end())
    return {"text": found[-1].group(), "start": first, "end": last + 1}


def find_notes(ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the notes that performance events (the ids of the vocabulary "music") play.

    A note has pitch and velocity (0 to 127), start and end in seconds, and the index of its token. One that is
    never released ends with the music.
    """
    notes: list[dict[str, Any]] = []
    sounding: dict[int, dict[str, Any]] = {}
    now, velocity = 0.0, bin_velocity(16)
    for index, event in enumerate(ids):
        kind, number = _event(event)
        if kind == "t":
            now += number / STEPS_PER_SECOND
        elif kind == "v":
            velocity = bin_velocity(number)
        elif kind:
            _end_note(sounding, number, now)
        if kind == "on":
            sounding[number] = {"pitch": number, "velocity": velocity, "start": now, "end": None, "token": index}
            notes.append(sounding[number])
    for pitch in list(sounding):
        _end_note(sounding, pitch, now)
    return notes


def _event(event: int) -> tuple[str, int]:
    """Return what kind of event an id is, and of which pitch, time or velocity; end of text is none."""
    word = WORDS[event] if event < len(WORDS) else "0"
    kind = word.rstrip("0123456789")
    return kind, int(word.removeprefix(kind))


def _end_note(sounding: dict[int, dict[str, Any]], pitch: int, now: float) -> None:
    if note := sounding.pop(pitch, None):
        note["end"] = now
