"""What tokens look like to people: their texts, the halves of a task's prompt, the notes of music.

Pure functions on names; used by ``inspection.py`` for the page.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from gpt_core.tokenizer import Tokenizer

# Between source and target: a translation's <to-fr>, a summary's TL;DR:, a completion's [toCode].
_SEPARATOR = re.compile(r"<to-[a-z]+>|TL;DR:|\[toCode\]")
_EVENT = re.compile(r"\W*(NOTE_ON|NOTE_OFF|TIME_SHIFT|SET_VELOCITY)\D{0,2}(\d+)\W*")
_SHIFT_SECONDS = 0.01
_VELOCITY_STEP = 4
"""128 velocities in 32 bins."""


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
        return TokenText(token, data.decode("utf-8"), is_partial=False)
    except UnicodeDecodeError:
        return TokenText(token, "".join(f"\\x{byte:02x}" for byte in data), is_partial=True)


def find_separator(texts: Sequence[str]) -> dict[str, Any] | None:
    """Return what parts source and target, or None: its text, the index of its first token and the one behind it.

    Of several, as in a prompt with examples, the last: its halves are the task at hand.
    """
    found = list(_SEPARATOR.finditer("".join(texts)))
    if not found:
        return None
    ends = list(accumulate(map(len, texts)))
    first = next(index for index, end in enumerate(ends) if end > found[-1].start())
    last = next(index for index, end in enumerate(ends) if end >= found[-1].end())
    return {"text": found[-1].group(), "start": first, "end": last + 1}


def find_notes(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the notes that performance events play; an empty list for what is no music.

    A note has pitch (0 to 127), velocity (0 to 127), start and end in seconds, and the index of its
    token. One that is never released ends with the music.
    """
    events = [_EVENT.fullmatch(text) for text in texts]
    notes: list[dict[str, Any]] = []
    sounding: dict[int, dict[str, Any]] = {}
    now, velocity = 0.0, 64
    for index, event in enumerate(events):
        if event is None:
            continue
        kind, number = event.group(1), int(event.group(2))
        if kind == "TIME_SHIFT":
            now += number * _SHIFT_SECONDS
        elif kind == "SET_VELOCITY":
            velocity = min(127, number * _VELOCITY_STEP)
        else:
            _end_note(sounding, number, now)
            if kind == "NOTE_ON":
                note = {"pitch": number, "velocity": velocity, "start": now, "end": None, "token": index}
                sounding[number] = note
                notes.append(note)
    for pitch in list(sounding):
        _end_note(sounding, pitch, now)
    return notes


def _end_note(sounding: dict[int, dict[str, Any]], pitch: int, now: float) -> None:
    if note := sounding.pop(pitch, None):
        note["end"] = now
