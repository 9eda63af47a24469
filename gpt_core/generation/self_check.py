"""Tries, when an engine loads, which shapes give a row the same bits on this machine.

Called by the engine, which gets its decoder here. Everything is compared with one constant shape,
``REFERENCE_ROWS``, whatever the number of slots: engines with few and many slots then agree with
each other, too. A class that differs is dropped: the promise is kept at the price of some speed.

The probe runs the engine's own decoder code on the first ``PROBE_LAYERS`` layers and the head:
kernels are chosen by shape, and all layers have the same shapes.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from gpt_core.generation.decode_attention import attention_kinds
from gpt_core.generation.decoder import CHUNK_TOKENS, Chunk, Decoder
from gpt_core.generation.kv_cache import GROWTH_POSITIONS, KEY_STEPS, KVCache, round_up
from gpt_core.generation.linear_kernels import Kernel, can_pack
from gpt_core.model.presets import ModelShape

_log = logging.getLogger(__name__)

REFERENCE_ROWS = 64
ROW_CLASSES = (4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
REFERENCE_CHUNKS = 4
CHUNK_CLASSES = (1, 2, 4, 8)
GPU_CHUNK_CLASSES = (4, 8, 16, 32, 64, 128, 256)
"""Each launch costs the same time, whatever there is to compute."""
KEY_CHECK_ROWS = 8
PROBE_LAYERS = 2
PROBE_POSITIONS = 48  # positions of the probing rows
REFERENCE_KEYS = GROWTH_POSITIONS
LONG_KEYS = (256, 576)


@dataclass(frozen=True, slots=True)
class Target:
    """Where and in which type to compute."""

    device: torch.device
    dtype: torch.dtype
    is_int8: bool = False
    """Products with weights in int8; ``dtype`` is then attention's."""

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that work here, the fastest first."""
        if self.is_int8:
            return ("int8",)
        return ("packed", "plain") if can_pack(self.device, self.dtype) else ("plain",)


@dataclass(frozen=True, slots=True)
class ShapeClasses:
    """The shapes that agree bit for bit, smallest first."""

    rows: tuple[int, ...]
    """Rows of a decode step."""
    chunks: tuple[int, ...]
    """Chunks of a prefill pass."""
    key_step: int
    """Numbers of keys are multiples of this; the whole cache's where padding changes bits."""
    dropped: tuple[str, ...]
    """The classes that differ, in words."""
    is_invariant: bool
    """False if even the reference shape depends on where among its rows a sequence lies."""


def checked_decoder(
    weights: Mapping[str, Tensor], shape: ModelShape, cache_positions: int, num_slots: int, target: Target
) -> tuple[Decoder, ShapeClasses]:
    """Return the fastest decoder whose bits do not depend on company, and the shapes that agree.

    If none is so (``is_invariant`` says it), the last one tried is returned with a warning logged.
    """
    decoder = classes = None
    for kernel, attention in product(target.kernels, attention_kinds(target.device, target.dtype, shape.head_width)):
        decoder = Decoder(weights, shape, target.dtype, target.device, kernel=kernel, attention=attention)
        classes = agreed_classes(weights, decoder, cache_positions, num_slots)
        if classes.is_invariant:
            break
        _log.warning(
            "generation, %s linear layers and attention by %s: rows depend on company: %s",
            kernel, attention, ", ".join(classes.dropped),
        )  # fmt: skip
    assert decoder is not None
    assert classes is not None
    return decoder, classes


def agreed_classes(weights: Mapping[str, Tensor], decoder: Decoder, num_positions: int, num_rows: int) -> ShapeClasses:
    """Compare the bits of every class of shapes an engine with ``num_rows`` slots can use.

    Args:
        weights: The model's, under the names of ``model.GPT``.
        decoder: The decoder whose type, device and kernel are to be tried.
        num_positions: The cache's length.
        num_rows: The engine's slots.
    """
    probe = _Probe(weights, decoder, num_positions)
    useful = [rows for rows in ROW_CLASSES if rows <= max(num_rows, REFERENCE_ROWS)]
    rows = tuple(count for count in useful if probe.agrees_on_rows(count))
    classes = _chunk_classes(decoder.device)
    chunks = tuple(count for count in classes if probe.agrees_on_chunks(count))
    # On a GPU each number of keys is a graph to record: fewer of them.
    steps = KEY_STEPS if decoder.device.type == "cpu" else KEY_STEPS[-1:]
    key_step = next((step for step in steps if probe.agrees_on_multiples(step)), num_positions)
    dropped = [f"decode rows {count}" for count in useful if count not in rows]
    dropped += [f"prefill chunks {count}" for count in classes if count not in chunks]
    dropped += [f"multiples of {step} keys" for step in steps if step < key_step]
    return ShapeClasses(
        rows=rows or (REFERENCE_ROWS,),
        chunks=chunks or (REFERENCE_CHUNKS,),
        key_step=key_step,
        dropped=tuple(dropped),
        is_invariant=REFERENCE_ROWS in rows and REFERENCE_CHUNKS in chunks,
    )


def _chunk_classes(device: torch.device) -> tuple[int, ...]:
    return CHUNK_CLASSES if device.type == "cpu" else GPU_CHUNK_CLASSES


class _Probe:
    """A decoder of the first layers, random rows, and what the reference shape makes of them."""

    def __init__(self, weights: Mapping[str, Tensor], decoder: Decoder, num_positions: int) -> None:
        shape = replace(decoder.shape, n_layer=min(PROBE_LAYERS, decoder.shape.n_layer))
        self._decoder = Decoder(
            weights, shape, decoder.dtype, decoder.device, kernel=decoder.kernel, attention=decoder.attention
        )
        self._shape = shape
        self._num_positions = num_positions
        self._generator = torch.Generator().manual_seed(0)
        num_rows = max(ROW_CLASSES)
        self._tokens = self._random(shape.vocabulary_size, num_rows)
        self._positions = self._random(min(PROBE_POSITIONS, shape.num_positions), num_rows)
        self._past = torch.randn(
            2, shape.n_layer, num_rows, shape.n_head, REFERENCE_KEYS, shape.head_width, generator=self._generator
        ).to(decoder.dtype)
        self._chunks = [
            Chunk(0, 0, tuple(self._random(shape.vocabulary_size, CHUNK_TOKENS).tolist()))
            for _ in range(max(_chunk_classes(decoder.device)))
        ]
        self._expected = self._decode(torch.arange(REFERENCE_ROWS), REFERENCE_KEYS)
        self._expected_chunks = self._prefill(range(REFERENCE_CHUNKS), REFERENCE_CHUNKS)

    def agrees_on_rows(self, count: int) -> bool:
        """Compare the leading rows in order, and all rows at other places of the batch."""
        shared = min(count, REFERENCE_ROWS)
        order = torch.arange(count)
        shuffled = torch.arange(count - 1, -1, -1)
        in_order = torch.equal(self._decode(order, REFERENCE_KEYS)[:shared], self._expected[:shared])
        back = self._decode(shuffled, REFERENCE_KEYS).flip(0)
        return in_order and torch.equal(back[:shared], self._expected[:shared])

    def agrees_on_multiples(self, step: int) -> bool:
        """Compare numbers of keys between one reference and the next, and long ones."""
        near = range(round_up(PROBE_POSITIONS, step), 2 * REFERENCE_KEYS + 1, step)
        lengths = sorted({min(length, self._num_positions) for length in (*near, *LONG_KEYS, self._num_positions)})
        # A few rows, because a cache of all rows at full length is large.
        rows = torch.arange(KEY_CHECK_ROWS)
        expected = self._decode(rows, REFERENCE_KEYS)
        return all(torch.equal(self._decode(rows, length), expected) for length in lengths)

    def agrees_on_chunks(self, count: int) -> bool:
        """Compare each chunk's stream in passes of ``count`` chunks, at both ends of the pass."""
        shared = min(count, REFERENCE_CHUNKS)
        first = self._prefill(range(count), count)
        last = self._prefill(range(count - 1, -1, -1), count).flip(0)
        expected = self._expected_chunks[:shared]
        return torch.equal(first[:shared], expected) and torch.equal(last[:shared], expected)

    def _random(self, limit: int, count: int) -> Tensor:
        return torch.randint(0, limit, (count,), generator=self._generator)

    def _cache(self, num_slots: int) -> KVCache:
        return KVCache(self._shape, num_slots, self._num_positions, self._decoder.dtype, self._decoder.device)

    def _decode(self, order: Tensor, num_keys: int) -> Tensor:
        cache = self._cache(len(order))
        for block in cache.blocks:
            rows = order[block.slots.start : block.slots.stop]
            for index in range(self._shape.n_layer):
                block.keys[index].copy_(self._past[0][index, rows])
                block.values[index].copy_(self._past[1][index, rows])
        # The positions are below num_keys, so that this step makes every block attend to it.
        return self._decoder.decode(cache, self._tokens[order], self._positions[order], range(len(order)), num_keys)

    def _prefill(self, order: range, count: int) -> Tensor:
        chunks = [replace(self._chunks[index], slot=slot) for slot, index in enumerate(order)]
        return self._decoder.prefill(self._cache(count), chunks, count)
