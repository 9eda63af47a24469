"""Learn a byte-level BPE vocabulary from text, and write it as a ranks file in tiktoken's format."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from gpt_core.errors import CorpusError, ResourceError, SettingsError
from gpt_core.storage import Storage
from gpt_core.tokens.tokenizer import GPT2_PATTERN, without_surrogates
from gpt_core.tokens.vocabulary import format_ranks

SMALLEST_VOCABULARY = 257
"""The 256 bytes and the end-of-text token."""
_PART_CHARACTERS = 1 << 16


def train_ranks(texts: Iterable[str], vocabulary_size: int) -> dict[bytes, int]:
    """Learn ranks from texts, split by GPT-2's pattern; the same texts give the same ranks.

    Args:
        texts: The documents; read once, a few thousand parts in memory at a time.
        vocabulary_size: Ids of the tokenizer, the 256 bytes and the end-of-text token included.

    Returns:
        ``vocabulary_size - 1`` ranks, each single byte among them.

    Raises:
        SettingsError: ``vocabulary_size`` is below 257.
        ResourceError: The package rustbpe is missing.
        CorpusError: The texts have too few different pieces for so many merges.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        where, found = "vocabulary_size", str(vocabulary_size)
        raise SettingsError(where, found, f"at least {SMALLEST_VOCABULARY}: 256 bytes and end of text", "raise it")
    try:
        import rustbpe
    except ImportError as error:
        expected = "the trainer of byte-pair vocabularies"
        raise ResourceError("train-tokenizer", "no package rustbpe", expected, "pip install rustbpe") from error
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue] - no stubs
    trainer.train_from_iterator(_parts(texts), vocab_size=vocabulary_size - 1, pattern=GPT2_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < vocabulary_size - 1:
        raise CorpusError(
            "train-tokenizer",
            f"text for {len(ranks) - 256} merges only",
            f"{vocabulary_size - 257} merges for a vocabulary of {vocabulary_size}",
            f"give more text, or a --vocabulary_size of {len(ranks) + 1} at most",
        )
    return ranks


def write_ranks(path: str | Path, ranks: dict[bytes, int], specials: Sequence[str] = ()) -> None:
    """Write a ranks file, atomically; ``load_tokenizer`` takes its path."""
    contents = format_ranks(ranks, specials)
    Storage.of(path).write_atomically(str(path), lambda file: file.write(contents))


def _parts(texts: Iterable[str]) -> Iterable[str]:
    """Yield the texts in parts small enough for the trainer's buffer and regex engine."""
    for text in texts:
        for start in range(0, len(text), _PART_CHARACTERS):
            yield without_surrogates(text[start : start + _PART_CHARACTERS])
