"""Digests of bytes: xxh3 against damage, SHA-256 for identity.

Called by the shard writer, the manifest and the verifier. xxh3 runs near memory speed and finds
damage; it is no defence against an adversary. SHA-256 names things that people compare: a corpus,
a tokenizer, a set of settings.
"""

import hashlib
import json
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import xxhash


def xxh3_128_hex(data: bytes | memoryview) -> str:
    """Return the 128-bit xxh3 of one contiguous buffer as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def xxh3_64_int(data: bytes | memoryview) -> int:
    """Return the 64-bit xxh3 of one contiguous buffer as an unsigned integer."""
    return xxhash.xxh3_64_intdigest(data)


def row_checksums(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return one uint32 a document: the low 32 bits of the xxh3_64 of its tokens' bytes.

    Args:
        tokens: Flat token ids of all documents, little-endian as stored.
        offsets: int64 [n + 1]; document i is ``tokens[offsets[i]:offsets[i + 1]]``.
    """
    flat_bytes = np.ascontiguousarray(tokens).data.cast("B")
    byte_offsets = (offsets.astype(np.int64) * tokens.itemsize).tolist()
    digest = xxhash.xxh3_64_intdigest
    sums = (digest(flat_bytes[start:end]) & 0xFFFFFFFF for start, end in pairwise(byte_offsets))
    return np.fromiter(sums, dtype=np.uint32, count=len(byte_offsets) - 1)


def sha256_hex(pieces: Iterable[bytes]) -> str:
    """Return the SHA-256 of the concatenated pieces as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def canonical_json(value: object) -> bytes:
    """Return the one spelling of a JSON value that digests are taken over (sorted keys, ASCII)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
