"""Text for corpora of tests: sources of every format, good and bad documents, the same on every call."""

import gzip
import json
import random
from pathlib import Path

import zstandard

NUM_DOCUMENTS = {"web": 121, "books": 24}
NUM_REJECTED = 4
_WORDS = [
    "herd",
    "graze",
    "over",
    "the",
    "hill",
    "and",
    "river",
    "slowly",
    "at",
    "dawn",
    "naïve",
    "<|endoftext|>",
    "🦙",
]


def write_sources(folder: Path, words_per_document: int = 60) -> list[dict[str, object]]:
    """Write two sources below a folder and return their settings; 4 records of "web" are no documents."""
    rng = random.Random(11)
    web, books = folder / "web", folder / "books"
    web.mkdir(parents=True)
    books.mkdir()

    def lines(count: int) -> list[str]:
        return [json.dumps({"text": _text(rng, words_per_document)}) for _ in range(count)]

    broken = ['{"text": "cut off', '{"text": 5}', '{"body": "no text"}', '{"text": ""}']
    (web / "plain.jsonl").write_text("\n".join([*lines(40), *broken, *lines(37)]) + "\n")
    (web / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines(20)).encode(), mtime=0))
    (web / "b.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines(20)).encode()))
    for number in range(NUM_DOCUMENTS["books"]):
        (books / f"{number:02}.txt").write_text(_text(rng, words_per_document * 3))
    return [
        {"name": "web", "paths": [str(web)], "weight": 3.0},
        {"name": "books", "paths": [str(books)], "weight": 1.0},
    ]


def _text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=num_words))
