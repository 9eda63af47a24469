"""Performances drawn as piano rolls: time to the right, pitch upwards, louder notes darker."""

from collections.abc import Sequence
from typing import Any, BinaryIO

from gpt_core.tokens.music import STEPS_PER_SECOND, Note

_OCTAVE = 12
_MOST_SECONDS = 60
_GAP = 0.002
"""Of the width, left white at a note's end, so that one struck again shows as two."""


def draw_rolls(performances: Sequence[tuple[str, Sequence[Note]]], file: BinaryIO) -> None:
    """Write a PNG with a row for each title and its notes, one at least, the first minute of them."""
    # The object interface: pyplot would keep global state and could pick a backend with windows.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.6 + 2.2 * len(performances)), layout="constrained")
    for index, (title, notes) in enumerate(performances, start=1):
        axes = figure.add_subplot(len(performances), 1, index)
        shown = [note for note in notes if note.start < _MOST_SECONDS * STEPS_PER_SECOND]
        seconds = min(max((note.end for note in shown), default=1) / STEPS_PER_SECOND, _MOST_SECONDS)
        axes.hlines(
            [note.pitch for note in shown],
            [note.start / STEPS_PER_SECOND for note in shown],
            [max(note.end / STEPS_PER_SECOND - _GAP * seconds, note.start / STEPS_PER_SECOND) for note in shown],
            colors=[(0.05, 0.25, 0.55, 0.25 + 0.75 * note.velocity / 127) for note in shown],
            linewidth=3.5,
        )
        axes.set_xlim(0, seconds)
        _label(axes, title, shown)
    figure.axes[-1].set_xlabel("seconds")
    FigureCanvasAgg(figure).print_png(file)


def _label(axes: Any, title: str, notes: Sequence[Note]) -> None:
    """Name the octaves between the lowest and the highest note, half of one around them."""
    low = min((note.pitch for note in notes), default=60) - _OCTAVE // 2
    high = max((note.pitch for note in notes), default=60) + _OCTAVE // 2
    octaves = [pitch for pitch in range(0, 128, _OCTAVE) if low <= pitch <= high]
    axes.set_title(f"{title}: {len(notes)} notes", fontsize=9, loc="left")
    axes.set_ylim(low, high)
    axes.set_yticks(octaves, [f"C{pitch // _OCTAVE - 1}" for pitch in octaves])
    axes.grid(axis="y", color="0.85", linewidth=0.6)
