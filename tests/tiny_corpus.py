"""A small finished corpus made without Ray: real shards and a real manifest of made-up documents."""

from pathlib import Path

import numpy as np

from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.shards import ShardWriter, with_end_of_text
from gpt_core.tokens.tokenizer import load_tokenizer

_WORDS = ["herd", "graze", "over", "the", "hill", "and", "river", "slowly", "at", "dawn"]


def write_tiny_corpus(folder: Path, num_documents: int = 60, held_out: int = 20) -> Path:
    """Write documents of words in random order, byte-tokenized, the last ones, if any, held out."""
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(_WORDS, 60)) + "\n" for _ in range(num_documents)]
    tokenizer = load_tokenizer("bytes")
    entries = []
    kept = num_documents - held_out
    parts = {"train": texts[:kept], "validation": texts[kept:]}
    for split, part in ((split, part) for split, part in parts.items() if part):
        ids, offsets = with_end_of_text(*tokenizer.encode_many(part), tokenizer.end_of_text)
        path = folder / split / "00000000.arrow"
        path.parent.mkdir(parents=True)
        writer = ShardWriter(path, tokenizer.dtype)
        writer.append(ids, offsets, ["words.txt"] * len(part), [0] * len(part), [len(text) for text in part])
        entries.append(ShardEntry(split, "words", 0, f"{split}/00000000.arrow", writer.close()))
    described = TokenizerEntry(tokenizer.name, tokenizer.digest, tokenizer.vocabulary_size, tokenizer.end_of_text)
    contents = ManifestContents({}, "made up", {"words": 1.0}, described, entries, [], num_documents)
    manifest.write(str(folder), contents)
    return folder
