"""Decode steps recorded as CUDA graphs, one for each shape, and replayed: a step is then one launch, not hundreds.

Used by the engine on GPUs in place of ``Decoder.decode``. Invariant: a replayed step gives the bits of the same
step run kernel by kernel; each graph is tried when it is recorded. Where recording fails, or the bits differ, every
step runs kernel by kernel from then on, and ``failure`` says why.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_core.generation.decoder import Decoder
from gpt_core.generation.kv_cache import KVCache
from gpt_core.generation.sampling import to_device

_log = logging.getLogger(__name__)
_WARM_UP_STEPS = 2  # libraries allocate workspaces at first calls, which no graph can hold


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    rows: Tensor
    """[2, R]: the tokens and the positions it reads."""
    logits: Tensor


class DecodeGraphs:
    """A decoder whose steps are recorded.

    Args:
        decoder: Computes what is recorded; on a CUDA device.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._recorded: dict[tuple[object, ...], _Recorded] = {}
        self._memory: tuple[KVCache | None, tuple[int, ...]] = None, ()
        self.failure: str | None = None
        """Why steps are not replayed; None while they are."""

    @torch.inference_mode()
    def decode(self, cache: KVCache, tokens_R: Tensor, positions_R: Tensor, slots: range, key_step: int) -> Tensor:
        """Do what ``Decoder.decode`` does; the logits are overwritten when a step of these slots is computed next."""
        if self.failure is not None:
            return self._decoder.decode(cache, tokens_R, positions_R, slots, key_step)
        num_keys = self._decoder.reserve(cache, positions_R, slots, key_step)
        self._forget_moved(cache)
        key = (slots.start, slots.stop, num_keys)
        recorded = self._recorded.get(key)
        rows_2R = to_device(torch.stack((tokens_R, positions_R)), self._decoder.device)
        if recorded is None:
            return self._record(key, cache, rows_2R, slots, num_keys)
        recorded.rows.copy_(rows_2R)
        recorded.graph.replay()
        return recorded.logits

    def _forget_moved(self, cache: KVCache) -> None:
        """Drop the graphs once a block has grown: they know where it was, even if what grew twice is there again."""
        memory = cache, tuple(block.num_moves for block in cache.blocks)
        if memory != self._memory:
            self._recorded.clear()
            self._memory = memory

    def _record(
        self,
        key: tuple[object, ...],
        cache: KVCache,
        rows_2R: Tensor,
        slots: range,
        num_keys: tuple[int, ...],
    ) -> Tensor:
        """Run a step kernel by kernel, record it for the next time, and return its logits."""
        decoder = self._decoder
        tokens_R, positions_R = rows_2R
        expected_RV = decoder.decode_rows(cache, tokens_R, positions_R, slots, num_keys)
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_STEPS):  # a step stores the same numbers each time
                    decoder.decode_rows(cache, tokens_R, positions_R, slots, num_keys)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may compute on the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                logits_RV = decoder.decode_rows(cache, tokens_R, positions_R, slots, num_keys)
            graph.replay()
            is_same = torch.equal(logits_RV, expected_RV)
        except (RuntimeError, AssertionError) as error:
            self._give_up(str(error).splitlines()[0])
        else:
            if is_same:
                self._recorded[key] = _Recorded(graph, rows_2R, logits_RV)
            else:
                self._give_up("a replayed step gave other bits")
        return expected_RV

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self._recorded.clear()
        _log.warning("generation: steps run kernel by kernel, no CUDA graph could be used: %s", reason)
