"""Digests: the published algorithms, over exactly the bytes named."""

import hashlib

import numpy as np
import pytest
import xxhash

from gpt_core.digests import canonical_json, row_checksums, sha256_hex, xxh3_64_int, xxh3_128_hex


def test_xxh3_of_nothing_is_the_published_value() -> None:
    """XXH3 with seed 0 of an empty input, from xxHash's specification."""
    assert xxh3_64_int(b"") == 0x2D06800538D394C2
    assert xxh3_128_hex(b"") == "99aa06d3014798d86001c324468d497f"


def test_sha256_joins_its_pieces() -> None:
    assert sha256_hex([b"ab", b"", b"c"]) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_row_checksum_is_half_the_xxh3_of_its_tokens(dtype: type) -> None:
    tokens, offsets = np.arange(10).astype(dtype), np.array([0, 3, 3, 10])
    documents = [tokens[:3], tokens[3:3], tokens[3:]]
    expected = [xxhash.xxh3_64(document.tobytes()).intdigest() % 2**32 for document in documents]
    checksums = row_checksums(tokens, offsets)
    assert checksums.dtype == np.uint32
    assert checksums.tolist() == expected


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": ["\u00e9", None]}) == b'{"a":["\\u00e9",null],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
