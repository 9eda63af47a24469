"""MIDI files as notes and back, through symusic (the extra ``music``).

Read: all tracks but drums as one performance, tempo changes followed, times rounded to 10 ms, each track's sustain
pedal (controller 64, down from 64 on) folded into the lengths of its notes. A track is symusic's: what one track of
the file plays on one channel with one program; a note that is never let go is not among its notes. Written: one piano
track, 1 ms a tick.
"""

import importlib.util
from collections.abc import Iterable
from typing import Any

from gpt_core.errors import ResourceError
from gpt_core.tokens.music import STEPS_PER_SECOND, Note, with_pedal

_TICKS_PER_QUARTER = 500
_TICKS_PER_STEP = 10  # at 120 quarters a minute a tick is 1 ms
_QUARTERS_PER_MINUTE = 120.0
_MOST_HOURS = 24
"""A few bytes can ask for years, and each second of silence is an event."""


class DamagedMidiError(Exception):
    """Bytes that are no MIDI file with notes; its text is the reason, with what was found and expected."""


def read_midi(data: bytes) -> list[Note]:
    """Return the notes of a MIDI file, sorted.

    Raises:
        DamagedMidiError: The bytes are no whole MIDI file, or one without a note.
        ResourceError: symusic is not installed.
    """
    score = _score(data)
    notes = [note for track in score.tracks if not track.is_drum for note in _notes(track)]
    if not notes:
        raise DamagedMidiError("found no note outside of drums; expected at least one")
    return sorted(notes)


def write_midi(notes: Iterable[Note]) -> bytes:
    """Return the bytes of a MIDI file of the notes, the same for the same notes.

    Raises:
        ResourceError: symusic is not installed.
    """
    symusic = require_symusic()
    score = symusic.Score(_TICKS_PER_QUARTER)
    score.tempos.append(symusic.Tempo(0, qpm=_QUARTERS_PER_MINUTE))
    track = symusic.Track("piano", 0, False)  # noqa: FBT003 - is_drum
    for note in sorted(notes):
        length = (note.end - note.start) * _TICKS_PER_STEP
        track.notes.append(symusic.Note(note.start * _TICKS_PER_STEP, length, note.pitch, note.velocity))
    score.tracks.append(track)
    return score.dumps_midi()


def require_symusic() -> Any:
    """Return the module.

    Raises:
        ResourceError: It is not installed.
    """
    if importlib.util.find_spec("symusic") is None:
        raise ResourceError("MIDI", "no package symusic", "an installed one", "pip install symusic")
    import symusic

    return symusic


def _score(data: bytes) -> Any:
    """Return symusic's score of a file, in seconds, none of its times negative or later than a day."""
    score_type = require_symusic().Score
    try:
        in_ticks = score_type.from_midi(data)
        score = in_ticks.to("second")
    except (RuntimeError, ValueError, MemoryError) as error:
        reason = str(error).split(":")[1].strip(" !") if "MiniMidi:" in str(error) else str(error)
        raise DamagedMidiError(f"found a damaged file ({reason}); expected a whole MIDI file") from error
    if in_ticks.ticks_per_quarter < 1:
        raise DamagedMidiError("found a damaged file (0 ticks a quarter); expected at least 1")
    # Ticks beyond 32 bits come back negative.
    if in_ticks.start() < 0 or score.end() > _MOST_HOURS * 3600:
        raise DamagedMidiError(f"found more than {_MOST_HOURS} hours of music; expected at most that")
    return score


def _notes(track: Any) -> list[Note]:
    found = track.notes.numpy()
    columns = (found["time"].astype("f8"), found["duration"].astype("f8"), found["pitch"], found["velocity"])
    notes = [
        Note(start := _steps(time), int(pitch), max(_steps(time + length), start + 1), int(velocity))
        for time, length, pitch, velocity in zip(*columns, strict=True)
        if velocity > 0
    ]
    return with_pedal(notes, _pedals(track))


def _pedals(track: Any) -> list[tuple[int, int]]:
    """Return the spans in which the sustain pedal is down; one never lifted sustains to the last end."""
    last = _steps(float(track.end()))
    spans, down = [], None
    for control in sorted(track.controls, key=lambda control: control.time):
        if control.number != 64:
            continue
        if control.value >= 64 and down is None:
            down = _steps(control.time)
        elif control.value < 64 and down is not None:
            spans.append((down, _steps(control.time)))
            down = None
    return spans if down is None else [*spans, (down, last)]


def _steps(seconds: float) -> int:
    return round(seconds * STEPS_PER_SECOND)
