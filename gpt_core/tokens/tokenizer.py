"""Text to token ids and back: GPT-2's vocabulary, plain bytes, or any tiktoken-format ranks file.

The ids of a text depend on the vocabulary alone, never on the backend that computes them. Encoding never
produces the end-of-text token: a literal ``<|endoftext|>`` in a document is text like any other. So are the special
tokens that fine-tuning adds, such as ``<to-fr>``, in documents; in prompts they are tokens.
"""

import functools
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tiktoken_ext import openai_public

from gpt_core.errors import ResourceError, SettingsError
from gpt_core.storage import Storage, is_url
from gpt_core.tokens.music_tokenizer import MusicTokenizer
from gpt_core.tokens.vocabulary import END_OF_TEXT, PUBLISHED, VOCABULARY, digest_ranks, gpt2_ranks, read_vocabulary

Backend = Literal["auto", "tiktoken", "gigatoken"]
Ids = NDArray[np.unsignedinteger]
IdType = type[np.uint16] | type[np.uint32]
GPT2_PATTERN = openai_public.r50k_pat_str
_BYTE_RANKS = {bytes([byte]): byte for byte in range(256)}


# What the splitting pattern's \\s matches (Unicode White_Space; Python's own \\s differs by U+001C..U+001F).
_LONG_SPACE = re.compile("[\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]{65536,}")


class Tokenizer(Protocol):
    """What the data path, the trainer and the engine need of a tokenizer."""

    name: str
    """As given to load_tokenizer."""
    backend: str
    """Which code computes the ids: "tiktoken", "gigatoken", "bytes" or "music"."""
    vocabulary_size: int
    """Number of ids, end of text and special tokens included."""
    end_of_text: int
    """The id that ends a document; the last one of the vocabulary but for special tokens."""
    specials: tuple[str, ...]
    """Special tokens, in the order of their ids, which follow end of text."""
    digest: str
    """SHA-256 of the vocabulary, equal for every backend."""
    dtype: IdType
    """The narrowest type that holds every id."""

    def encode_many(self, texts: Sequence[str]) -> tuple[Ids, NDArray[np.int64]]:
        """Return all texts' ids in one flat array and the n + 1 offsets between them; no end of text."""
        ...

    def encode(self, text: str) -> Ids:
        """Return the ids of one text, without an end-of-text token."""
        ...

    def encode_prompt(self, text: str) -> Ids:
        """Return the ids of a prompt: as ``encode``, but a special token that it spells is that token."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; bytes that are not UTF-8 become U+FFFD."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of the ids; end of text reads ``<|endoftext|>``."""
        ...


def load_tokenizer(name: str, backend: Backend = "tiktoken") -> Tokenizer:
    """Build the tokenizer called ``name`` from files on this machine.

    Args:
        name: "gpt2", "bytes", "music", or the place of a ranks file in tiktoken's format (split by GPT-2's pattern).
        backend: "tiktoken" is the reference, "gigatoken" the fast one, "auto" the fast one if installed.

    Raises:
        SettingsError: ``name`` is neither a known tokenizer nor a file.
        CorpusError: The ranks file is malformed.
        ResourceError: A package is missing.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name == "music":
        return MusicTokenizer()
    reference = _load_reference(name)
    if backend == "tiktoken" or (backend == "auto" and not has_gigatoken()):
        return reference
    if not has_gigatoken():
        raise ResourceError(
            "tokenizer backend",
            "no package gigatoken",
            "an installed one",
            "pip install gigatoken, or use 'auto'",
        )
    from gpt_core.tokens.gigatoken_backend import GigatokenTokenizer

    return GigatokenTokenizer(reference)


def has_gigatoken() -> bool:
    """Return whether the optional fast backend is installed."""
    return importlib.util.find_spec("gigatoken") is not None


def id_type(vocabulary_size: int) -> IdType:
    """Return the narrowest type for ids below ``vocabulary_size``: 2 bytes a token up to 65,536."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


class TiktokenTokenizer:
    """The reference: a tiktoken ``Encoding`` over given ranks and GPT-2's splitting pattern."""

    backend = "tiktoken"

    def __init__(self, name: str, ranks: dict[bytes, int], specials: tuple[str, ...] = ()) -> None:
        self.name = name
        self.ranks = ranks
        self.specials = specials
        self.end_of_text = len(ranks)
        self.vocabulary_size = len(ranks) + 1 + len(specials)
        self.digest = digest_ranks(ranks, GPT2_PATTERN, specials)
        self.dtype: IdType = id_type(self.vocabulary_size)
        ids = {special: len(ranks) + number for number, special in enumerate((END_OF_TEXT, *specials))}
        self._encoding = tiktoken.Encoding(name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=ids)
        longest_first = sorted(specials, key=len, reverse=True)  # a pattern takes the first alternative that fits
        self._of_prompts = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if specials else None

    def __reduce__(self) -> tuple[Callable[[str, Backend], Tokenizer], tuple[str, str]]:
        """Pickle as its name: the receiver reads its own vocabulary files."""
        return load_tokenizer, (self.name, self.backend)

    def encode_many(self, texts: Sequence[str]) -> tuple[Ids, NDArray[np.int64]]:
        """Return all texts' ids in one flat array and the n + 1 offsets between them; no end of text."""
        # One call a text is faster than tiktoken's own batch calls, which go through a thread pool.
        pieces = [self.encode(text) for text in texts]
        return _join(pieces, self.dtype)

    def encode(self, text: str) -> Ids:
        """Return the ids of one text, without an end-of-text token; lone surrogates become U+FFFD."""
        try:
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encode(without_surrogates(text))
        except ValueError:
            # About a million white-space characters in a row exhaust the regex engine's stack.
            parts = split_long_space(text)
            if len(parts) == 1:
                raise
            return np.concatenate([self.encode(part) for part in parts])
        return ids.astype(self.dtype)

    def encode_prompt(self, text: str) -> Ids:
        """Return the ids of a prompt: as ``encode``, but a special token that it spells is that token."""
        if self._of_prompts is None:
            return self.encode(text)
        pieces = self._of_prompts.split(text)  # texts at even places, special tokens between them
        return np.concatenate(
            [self._special(piece) if place % 2 else self.encode(piece) for place, piece in enumerate(pieces)]
        )

    def _special(self, special: str) -> Ids:
        return np.array([self.end_of_text + 1 + self.specials.index(special)], self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of the ids; end of text reads ``<|endoftext|>``."""
        return self._encoding.decode_bytes([_known_id(token, self) for token in ids])


class ByteTokenizer:
    """The 256 bytes and an end-of-text token: 257 ids, no vocabulary file."""

    name = "bytes"
    backend = "bytes"
    end_of_text = 256
    vocabulary_size = 257
    specials: tuple[str, ...] = ()
    digest = hashlib.sha256(b"bytes 0..255, end of text 256\n").hexdigest()
    dtype: IdType = np.uint16

    def encode_many(self, texts: Sequence[str]) -> tuple[Ids, NDArray[np.int64]]:
        """Return all texts' ids in one flat array and the n + 1 offsets between them; no end of text."""
        return _join([self.encode(text) for text in texts], self.dtype)

    def encode(self, text: str) -> Ids:
        """Return the UTF-8 bytes of one text as ids; lone surrogates become U+FFFD."""
        try:
            encoded = text.encode("utf-8")
        except UnicodeEncodeError:
            encoded = without_surrogates(text).encode("utf-8")
        return np.frombuffer(encoded, np.uint8).astype(self.dtype)

    def encode_prompt(self, text: str) -> Ids:
        """Return the ids of a prompt; there are no special tokens."""
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of the ids; end of text reads ``<|endoftext|>``."""
        end = END_OF_TEXT.encode("ascii")
        known = (_known_id(token, self) for token in ids)
        return b"".join(end if token == self.end_of_text else bytes([token]) for token in known)


@dataclass(frozen=True, slots=True)
class GrownVocabulary:
    """A tokenizer's vocabulary with further special tokens, before it is written."""

    tokenizer: Tokenizer
    ranks: dict[bytes, int]
    specials: tuple[str, ...]

    @staticmethod
    def of(tokenizer: Tokenizer, specials: Sequence[str]) -> "GrownVocabulary":
        """Return a vocabulary with the special tokens, those it has already left where they are."""
        added = tuple(special for special in specials if special not in tokenizer.specials)
        known = tokenizer.ranks if isinstance(tokenizer, TiktokenTokenizer) else _BYTE_RANKS
        return GrownVocabulary(tokenizer, known, tokenizer.specials + added)

    @property
    def name(self) -> str:
        """The tokenizer's, where that is a published vocabulary and nothing was added; else that of the ranks file."""
        return self.tokenizer.name if self.tokenizer.name in PUBLISHED and not self.specials else VOCABULARY

    @property
    def size(self) -> int:
        """Number of ids, end of text and special tokens included."""
        return self.tokenizer.end_of_text + 1 + len(self.specials)

    @property
    def digest(self) -> str:
        """The digest of the tokenizer that reads it."""
        unchanged = self.specials == self.tokenizer.specials
        return self.tokenizer.digest if unchanged else digest_ranks(self.ranks, GPT2_PATTERN, self.specials)


def without_surrogates(text: str) -> str:
    """Return the text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def split_long_space(text: str) -> list[str]:
    """Cut a text inside its runs of 65,536 or more white-space characters without changing its ids.

    GPT-2's pattern makes all but the last character of such a run one piece when more text follows. No piece
    that ends before the run reaches into it, so the cut before that last character is between pieces.
    """
    cuts = [match.end() - 1 for match in _LONG_SPACE.finditer(text) if match.end() < len(text)]
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@functools.lru_cache(maxsize=4)
def _load_reference(name: str) -> TiktokenTokenizer:
    if name == "gpt2":
        return TiktokenTokenizer(name, gpt2_ranks())
    path = name if is_url(name) else str(Path(name).expanduser())
    if not Storage.of(path).is_file(path):
        raise SettingsError(
            f"tokenizer {name!r}", "no such name or file", "'gpt2', 'bytes', 'music' or a ranks file", "check the path"
        )
    return TiktokenTokenizer(name, *read_vocabulary(path))


def _join(pieces: list[Ids], dtype: IdType) -> tuple[Ids, NDArray[np.int64]]:
    offsets = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    flat = np.concatenate(pieces) if pieces else np.empty(0, dtype)
    return flat, offsets


def _known_id(token: int, tokenizer: Tokenizer) -> int:
    if not 0 <= token < tokenizer.vocabulary_size:
        raise SettingsError(
            f"tokenizer {tokenizer.name!r}",
            f"token id {int(token)}",
            f"ids from 0 to {tokenizer.vocabulary_size - 1}",
            "decode with the tokenizer that made them",
        )
    return int(token)
