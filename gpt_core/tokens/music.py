"""Music as performance events: 388 of them, and notes to events and back.

    0-127    NOTE_ON       a pitch begins, at the velocity set last      on60
    128-255  NOTE_OFF      a pitch ends                                  off60
    256-355  TIME_SHIFT    1 to 100 steps of 10 ms pass                  t100
    356-387  SET_VELOCITY  one of 32 velocities, 4 of MIDI's to each     v16

The events are those of Oore et al. 2018 (This Time with Feeling), section 3. The words on the right are how a
performance reads as text, one after the other with spaces: in prompts, in generated rows, and in corpora.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

STEPS_PER_SECOND = 100
NUM_EVENTS = 388
_NOTE_OFF, _TIME_SHIFT, _SET_VELOCITY = 128, 256, 356
_MOST_STEPS = 100
_BIN_VELOCITIES = 4
_FIRST_BIN = 16
"""The velocity of notes before any SET_VELOCITY; performances made here always begin with one."""

WORDS: tuple[str, ...] = (
    *(f"on{pitch}" for pitch in range(128)),
    *(f"off{pitch}" for pitch in range(128)),
    *(f"t{steps}" for steps in range(1, _MOST_STEPS + 1)),
    *(f"v{number}" for number in range(32)),
)
"""The word of each event."""


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """A note in steps of 10 ms, ``start < end``; pitch 0 to 127, velocity 1 to 127."""

    start: int
    pitch: int
    end: int
    velocity: int


def velocity_bin(velocity: int) -> int:
    """Return the bin, 0 to 31, of a MIDI velocity: 1 to 4 are bin 0, 125 to 127 bin 31."""
    return (velocity - 1) // _BIN_VELOCITIES


def bin_velocity(number: int) -> int:
    """Return the velocity that stands for a bin: its second, so that the loudest is 126."""
    return number * _BIN_VELOCITIES + 2


def performable(notes: Iterable[Note]) -> list[Note]:
    """Return the notes as events can say them: one at a time on a pitch, velocities of the 32 bins, in order.

    Of notes that begin together on a pitch, the longest stays, the louder of equals; a note ends where the next one
    on its pitch begins.
    """
    by_pitch: dict[int, dict[int, Note]] = {}
    for note in notes:
        starts = by_pitch.setdefault(note.pitch, {})
        other = starts.get(note.start)
        if other is None or (other.end, other.velocity) < (note.end, note.velocity):
            starts[note.start] = note
    kept = []
    for pitch, starts in by_pitch.items():
        order = sorted(starts)
        for start, following in zip(order, [*order[1:], None], strict=True):
            end = starts[start].end if following is None else min(starts[start].end, following)
            kept.append(Note(start, pitch, end, bin_velocity(velocity_bin(starts[start].velocity))))
    return sorted(kept)


def events_of(notes: Iterable[Note]) -> list[int]:
    """Return the events of a performance; ends before beginnings at one time, low pitches first.

    The events say ``performable(notes)`` exactly.
    """
    chosen = performable(notes)
    changes = sorted([(note.end, 0, note.pitch, 0) for note in chosen] + [
        (note.start, 1, note.pitch, velocity_bin(note.velocity)) for note in chosen
    ])  # fmt: skip
    events: list[int] = []
    now, current = 0, None
    for time, begins, pitch, number in changes:
        events += _passing(time - now)
        now = time
        if begins and number != current:
            events.append(_SET_VELOCITY + number)
            current = number
        events.append(pitch if begins else _NOTE_OFF + pitch)
    return events


def notes_of(events: Iterable[int]) -> list[Note]:
    """Return the notes that any events say, in order; ids that are no events are passed over.

    A model may write what no performance has: an end of a silent pitch says nothing, a pitch struck again ends and
    begins anew, and notes still sounding at the end end there, a step after their beginning at least.
    """
    notes: list[Note] = []
    sounding: dict[int, tuple[int, int]] = {}
    now, number = 0, _FIRST_BIN

    def end(pitch: int) -> None:
        start, velocity = sounding.pop(pitch, (now, 0))
        if start < now:
            notes.append(Note(start, pitch, now, velocity))

    for event in events:
        if event < _NOTE_OFF:
            end(event)
            sounding[event] = (now, bin_velocity(number))
        elif event < _TIME_SHIFT:
            end(event - _NOTE_OFF)
        elif event < _SET_VELOCITY:
            now += event - _TIME_SHIFT + 1
        elif event < NUM_EVENTS:
            number = event - _SET_VELOCITY
    notes += [Note(start, pitch, max(now, start + 1), velocity) for pitch, (start, velocity) in sounding.items()]
    return sorted(notes)


def text_of(events: Iterable[int]) -> str:
    """Return events as words, each with a space after it."""
    return "".join(f"{WORDS[event]} " for event in events)


def with_pedal(notes: Sequence[Note], pedals: Sequence[tuple[int, int]]) -> list[Note]:
    """Return the notes as long as they sound under a sustain pedal.

    A note whose end lies within a span (down, up) of the pedal sounds until the pedal goes up; ``performable``
    ends it earlier where its pitch is struck again.

    Args:
        notes: As the keys were held.
        pedals: Spans in steps, in order, none overlapping.
    """
    downs = [down for down, _ in pedals]

    def lifted(end: int) -> int:
        span = bisect.bisect_right(downs, end) - 1
        return max(end, pedals[span][1]) if span >= 0 else end

    return sorted(Note(note.start, note.pitch, lifted(note.end), note.velocity) for note in notes)


def _passing(num_steps: int) -> Iterator[int]:
    while num_steps > 0:
        taken = min(num_steps, _MOST_STEPS)
        yield _TIME_SHIFT + taken - 1
        num_steps -= taken
