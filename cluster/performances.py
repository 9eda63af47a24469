"""What a music checkpoint generated, as MIDI files beside the rows, and the first of them as a picture."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from cluster.piano_roll import draw_rolls
from gpt_core.storage import Storage
from gpt_core.tokens.midi import write_midi
from gpt_core.tokens.music import Note, notes_of
from gpt_core.tokens.music_tokenizer import MusicTokenizer

FOLDER = "midi"
PICTURE = "piano_roll.png"
_PICTURED = 4


def write_performances(folder: str, row_files: Iterable[str]) -> int:
    """Write midi/NNNNNN.mid for each row, prompt and completion, and piano_roll.png; return how many there are.

    Args:
        folder: The generated dataset's; files are named in the order of its rows, from 0.
        row_files: Its files of rows, relative to it, in order.
    """
    storage = Storage.of(folder)
    tokenizer = MusicTokenizer()
    pictured: list[tuple[str, list[Note]]] = []
    num_files = 0
    for row in (row for path in row_files for row in _rows(storage, storage.join(path))):
        notes = notes_of([*tokenizer.encode(row["prompt"]).tolist(), *row["token_ids"]])
        data, path = write_midi(notes), f"{FOLDER}/{num_files:06d}.mid"
        storage.write_atomically(storage.join(path), lambda file, data=data: file.write(data))
        if len(pictured) < _PICTURED:
            pictured.append((f"{path} ({row['id']}, sample {row['sample']})", notes))
        num_files += 1
    if pictured:
        storage.write_atomically(storage.join(PICTURE), lambda file: draw_rolls(pictured, file))
    return num_files


def _rows(storage: Storage, path: str) -> Iterator[dict[str, Any]]:
    if path.endswith(".jsonl"):
        with storage.on_disk(path) as there, there.open("rb") as lines:
            yield from map(json.loads, lines)
        return
    with storage.on_disk(path) as there, pa.memory_map(str(there)) as source:
        for batch in map(pa.ipc.open_file(source).get_batch, range(pa.ipc.open_file(source).num_record_batches)):
            yield from batch.to_pylist()
