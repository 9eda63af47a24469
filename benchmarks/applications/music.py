"""Chorales from scores: MIDI to events, a small model, new pieces as .mid, and their statistics beside the corpus's.

    pip install music21 symusic
    python -m benchmarks.applications.music [--scores FOLDER] [--output FOLDER] [--steps 500]

music21 carries scores of Bach's chorales. They are converted to .mid once, into --scores; then one `herd pipeline`
tokenizes them (`--tokenize.kind midi`), trains a model of 0.4 million parameters and generates 16 pieces. What is
compared are distributions of notes: the overlap of two histograms is the sum of the smaller shares, 1 for equal ones.
Chance is the same number of events drawn evenly; the two halves of the corpus show how far equals are apart.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from gpt_core.tokens.midi import read_midi
from gpt_core.tokens.music import NUM_EVENTS, STEPS_PER_SECOND, Note, events_of, notes_of

NUM_PROMPTS, NUM_SAMPLES, NEW_TOKENS = 4, 4, 250
_OPENING = "v22 "
"""How every converted score begins: music21 gives all notes one velocity."""
Pieces = Sequence[Sequence[Note]]
Histogram = Callable[[Sequence[Note]], Iterable[Any]]


def main() -> None:
    """Convert, run the pipeline, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, default=Path("runs/music-scores"))
    parser.add_argument("--output", type=Path, default=Path("runs/music"))
    parser.add_argument("--most-scores", type=int, default=400)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    convert(arguments.scores, arguments.most_scores)
    started = time.monotonic()
    run_pipeline(arguments.scores, arguments.output, arguments.steps)
    seconds = time.monotonic() - started
    corpus = [read_midi(path.read_bytes()) for path in sorted(arguments.scores.glob("*.mid"))]
    generated = [read_midi(path.read_bytes()) for path in sorted(arguments.output.glob("generated/midi/*.mid"))]
    measured = json.loads((arguments.output / "evaluation" / "evaluation.json").read_text())
    print(f"{len(corpus)} scores, {sum(map(len, corpus)):,} notes; {arguments.steps} steps, pipeline {seconds:.0f} s")
    print(f"held out: loss {measured['measured']['loss']:.3f} nats an event, perplexity {measured['perplexity']:.2f}")
    print(f"{len(generated)} generated files read back, {sum(map(len, generated)):,} notes")
    print(table(corpus, generated))


def convert(folder: Path, most: int) -> None:
    """Write the chorales as .mid files, those that are not there yet."""
    from music21 import corpus

    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(corpus.getComposer("bach"))[:most]:
        target = folder / f"{path.stem}.mid"
        if path.suffix == ".mxl" and path.stem.startswith("bwv") and not target.exists():
            aside = target.with_suffix(".aside")
            corpus.parse(path).write("midi", str(aside))
            aside.rename(target)


def run_pipeline(scores: Path, output: Path, num_steps: int) -> None:
    """Tokenize, train, evaluate and generate by the command a user would type."""
    output.mkdir(parents=True, exist_ok=True)
    prompts = output / "openings.jsonl"
    lines = [json.dumps({"id": f"opening {index}", "prompt": _OPENING}) for index in range(NUM_PROMPTS)]
    prompts.write_text("\n".join(lines) + "\n")
    train = {
        "num_steps": num_steps,
        "batch_sequences": 16,
        "micro_batch_sequences": 8,
        "evaluate_every_steps": num_steps // 4,
        "evaluate_sequences": 64,
        "checkpoint_every_steps": num_steps // 2,
    }
    settings = {
        "output": str(output),
        "tokenize": {"kind": "midi", "input": [str(scores)], "validation_fraction": 0.1, "shard_bytes": 100_000},
        "pretrain": {
            "model": {"n_layer": 3, "n_head": 3, "n_embd": 96, "num_positions": 256},
            "recipe": {"learning_rate": 2e-3, "warmup_tokens": 100_000, "beta2": 0.99},
            "train": train,
        },
        "evaluate": {"max_windows": 64},
        "generate": {
            "prompts": [str(prompts)],
            "sampling": {
                "max_tokens": NEW_TOKENS,
                "num_samples": NUM_SAMPLES,
                "temperature": 0.9,
                "top_k": None,
                "top_p": 0.95,
            },
        },
    }
    (output / "pipeline.yaml").write_text(json.dumps(settings, indent=1))  # JSON is YAML
    command = [sys.executable, "-m", "jobs.pipeline", "--config", str(output / "pipeline.yaml")]
    subprocess.run(command, check=True)


def table(corpus: Pieces, generated: Pieces) -> str:
    """Return a Markdown table of the statistics of corpus, generated pieces, the corpus's halves, and chance."""
    events = sum(len(events_of(notes)) for notes in generated)
    chance = [notes_of(random.Random(0).choices(range(NUM_EVENTS), k=events))]
    columns = {"generated": generated, "corpus, other half": corpus[1::2], "chance": chance}
    lines = [f"| | {' | '.join(['corpus', *columns])} |", "|---|" + "---|" * (len(columns) + 1)]
    for name, histogram in _HISTOGRAMS.items():
        own = shares(corpus[::2], histogram)
        values = [overlap(own, shares(pieces, histogram)) for pieces in columns.values()]
        lines.append(f"| overlap of {name} | 1 | {' | '.join(f'{value:.3f}' for value in values)} |")
    for name, mean in _MEANS.items():
        values = [mean(pieces) for pieces in (corpus, *columns.values())]
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return "\n".join(lines)


def shares(pieces: Pieces, histogram: Histogram) -> dict[Any, float]:
    """Return the share of each value over all notes of all pieces."""
    counts = Counter(value for notes in pieces for value in histogram(notes))
    return {value: count / counts.total() for value, count in counts.items()}


def overlap(left: dict[Any, float], right: dict[Any, float]) -> float:
    """Return the sum of the smaller shares."""
    return sum(min(share, right.get(value, 0.0)) for value, share in left.items())


def _sounding(notes: Sequence[Note]) -> list[int]:
    """Return how many notes sound, every 10 ms at which any does."""
    changes = Counter(note.start for note in notes)
    changes.subtract(Counter(note.end for note in notes))
    counts, current, now = [], 0, 0
    for time_steps in sorted(changes):
        counts += [current] * (time_steps - now) if current else []
        current, now = current + changes[time_steps], time_steps
    return counts


def _intervals(notes: Sequence[Note]) -> list[int]:
    """Return the distance of each note to the lowest one that begins with it, within an octave."""
    lowest: dict[int, int] = {}
    for note in notes:
        lowest[note.start] = min(lowest.get(note.start, 127), note.pitch)
    return [(note.pitch - lowest[note.start]) % 12 for note in notes if note.pitch > lowest[note.start]]


def _per_second(pieces: Pieces) -> float:
    seconds = sum(max(note.end for note in notes) for notes in pieces) / STEPS_PER_SECOND
    return sum(map(len, pieces)) / seconds


def _mean(histogram: Histogram) -> Callable[[Pieces], float]:
    def mean(pieces: Pieces) -> float:
        values = [value for notes in pieces for value in histogram(notes)]
        return sum(values) / len(values)

    return mean


def _pitches(notes: Sequence[Note]) -> list[int]:
    return [note.pitch for note in notes]


def _lengths(notes: Sequence[Note]) -> list[int]:
    return [note.end - note.start for note in notes]


_HISTOGRAMS: dict[str, Histogram] = {
    "pitches": _pitches,
    "pitch classes": lambda notes: [note.pitch % 12 for note in notes],
    "note lengths": _lengths,
    "intervals over the bass": _intervals,
    "notes sounding at once": _sounding,
}
_MEANS: dict[str, Callable[[Pieces], float]] = {
    "mean pitch": _mean(_pitches),
    "mean note length (s)": lambda pieces: _mean(_lengths)(pieces) / STEPS_PER_SECOND,
    "notes sounding at once": _mean(_sounding),
    "notes a second": _per_second,
}


if __name__ == "__main__":
    main()
