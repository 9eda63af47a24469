"""The vocabulary of performance events as a tokenizer: its texts are the words of ``gpt_core.tokens.music``."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_core.errors import SettingsError
from gpt_core.tokens.music import NUM_EVENTS, WORDS
from gpt_core.tokens.vocabulary import END_OF_TEXT

_IDS = {word: event for event, word in enumerate(WORDS)}


class MusicTokenizer:
    """388 events and an end-of-text token; decoded words have a space after them."""

    name = "music"
    backend = "music"
    end_of_text = NUM_EVENTS
    vocabulary_size = NUM_EVENTS + 1
    specials: tuple[str, ...] = ()
    digest = hashlib.sha256(f"{' '.join(WORDS)} {END_OF_TEXT}\n".encode()).hexdigest()
    dtype: type[np.uint16] | type[np.uint32] = np.uint16

    def encode_many(self, texts: Sequence[str]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Return all texts' ids in one flat array and the n + 1 offsets between them; no end of text."""
        pieces = [self.encode(text) for text in texts]
        offsets = np.zeros(len(pieces) + 1, np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        return np.concatenate([np.empty(0, np.uint16), *pieces]), offsets

    def encode(self, text: str) -> NDArray[np.uint16]:
        """Return the events that a text's words name.

        Raises:
            SettingsError: A word names none.
        """
        words = text.split()
        try:
            return np.array([_IDS[word] for word in words], np.uint16)
        except KeyError as error:
            expected = "events such as v16 (velocity), on60, off60 (pitch) and t100 (steps of 10 ms)"
            raise SettingsError("music", f"the word {error.args[0]!r:.60}", expected, "correct it") from None

    def encode_prompt(self, text: str) -> NDArray[np.uint16]:
        """Return the ids of a prompt; there are no special tokens."""
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words of the ids."""
        return "".join(END_OF_TEXT if token == self.end_of_text else f"{WORDS[token]} " for token in map(int, ids))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the words of the ids as ASCII; end of text reads ``<|endoftext|>``."""
        return self.decode(ids).encode("ascii")
