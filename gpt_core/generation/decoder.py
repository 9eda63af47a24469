"""The forward pass of generation: the same GPT as ``model.py``, on a cache and on constant shapes.

Called by the engine. Invariant: which numbers a row is computed from, and by operations of which
shapes, depends on that row's own sequence alone. Rows of other sequences share a matrix product
only where its bits do not depend on how many rows there are (``self_check.py`` tries it).

Shapes: R rows (one a slot), P chunks, T positions of a chunk, M = P*T, C width, H heads,
L keys, D head width, V vocabulary rounded up to ``VOCABULARY_STEP``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_core.generation.decode_attention import AttentionKind, Rows, attention_of, masked_attention
from gpt_core.generation.kv_cache import CacheBlock, KVCache, round_up
from gpt_core.generation.linear_kernels import Kernel, Linear, make_linear
from gpt_core.generation.row_blocks import GPU_BLOCK_ROWS, in_blocks
from gpt_core.generation.sampling import VOCABULARY_STEP, to_device
from gpt_core.model.gpt import LAYER_NORM_EPSILON
from gpt_core.model.presets import ModelShape

CHUNK_TOKENS = 32
_ChunkAttention = Callable[[int, int | None, Tensor, Tensor], None]
"""(layer, band, qkv_M3HD, mixed_MC): stores the keys and values of chunks and fills in what their rows see."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Up to CHUNK_TOKENS prompt tokens for positions from ``start``, a multiple of CHUNK_TOKENS."""

    slot: int
    start: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    dtype: torch.dtype

    def __call__(self, x_MC: Tensor) -> Tensor:
        normed = F.layer_norm(x_MC, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPSILON)
        return normed.to(self.dtype)


@dataclass(frozen=True, slots=True)
class _Layer:
    ln_1: _Norm
    qkv: Linear
    attention_out: Linear
    ln_2: _Norm
    fc_gelu: Linear
    mlp_out: Linear
    band: int | None


class Decoder:
    """A GPT's weights laid out for generation.

    Products and the cache are in ``dtype``; the residual stream, the LayerNorms and the logits in fp32. With the kernel
    "int8" the products with weights are in int8, and ``dtype`` is attention's and the cache's alone.

    Args:
        weights: fp32 tensors under the parameter names of ``model.GPT``; not changed.
        shape: The model's sizes; dropout is not applied.
        dtype: torch.float32 or torch.bfloat16.
        device: Where to compute.
        kernel: How products with weights are computed; ``linear_kernels`` says which work here.
        attention: How decode steps attend to the cache.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        shape: ModelShape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        kernel: Kernel,
        attention: AttentionKind,
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.kernel: Kernel = kernel
        self.attention: AttentionKind = attention
        self._attend = attention_of(attention, dtype, shape.head_width)
        self._product_dtype = torch.float32 if kernel == "int8" else dtype
        self._weights = weights
        self._wte_VC = weights["wte.weight"].detach().to(device)
        self._wpe_LC = weights["wpe.weight"].detach().to(device, torch.float32)
        self._layers = [self._layer(index) for index in range(shape.n_layer)]
        self._ln_f = self._norm("ln_f")
        spare = -shape.vocabulary_size % VOCABULARY_STEP
        # Logits of a trained model have a large part in common, in which 8 bits would lose the rest.
        self._mean_C = self._wte_VC.float().mean(0)
        head_VC = F.pad(self._wte_VC.float() - self._mean_C, (0, 0, 0, spare))
        self._head = make_linear(kernel, head_VC.to(self._product_dtype), None)
        self._logits = self._logits_of if device.type == "cpu" else in_blocks(self._logits_of, GPU_BLOCK_ROWS)
        self._wte_VC = self._wte_VC.to(dtype)
        self._weights = {}

    @torch.inference_mode()
    def decode(self, cache: KVCache, tokens_R: Tensor, positions_R: Tensor, slots: range, key_step: int) -> Tensor:
        """Store one token's keys and values in each slot of ``slots`` and return fp32 logits_RV.

        Logits of ids past the vocabulary are -inf. Natively a row attends to its own positions alone; else each block
        of the cache to the least multiple of ``key_step`` (one of KEY_STEPS, or the cache's length) that exceeds its
        positions, or by products to all that it has memory for. It changes no bit of a row.
        """
        num_keys = self.reserve(cache, positions_R, slots, key_step)
        tokens_R, positions_R = (to_device(values, self.device) for values in (tokens_R, positions_R))
        return self.decode_rows(cache, tokens_R, positions_R, slots, num_keys)

    def reserve(self, cache: KVCache, positions_R: Tensor, slots: range, key_step: int) -> tuple[int, ...]:
        """Make room for a step and return the number of keys of each block it touches; positions on the CPU."""
        counts = []
        for block, rows, _ in _touched(cache, slots):
            num_keys = round_up(int(positions_R[rows].max()) + 1, key_step)
            block.reserve(num_keys)
            # Products of a part of the block would first copy it.
            counts.append(block.num_positions if self.attention == "products" else num_keys)
        return tuple(counts)

    @torch.inference_mode()
    def decode_rows(
        self, cache: KVCache, tokens_R: Tensor, positions_R: Tensor, slots: range, num_keys: tuple[int, ...]
    ) -> Tensor:
        """Do the step that ``reserve`` made room for; nothing waits for the device, so that it can be recorded."""
        x_RC = self._embed(tokens_R, positions_R)
        spans = list(self._spans(cache, positions_R, slots, num_keys))
        for index, layer in enumerate(self._layers):
            qkv_R3HD = self._heads(layer.qkv(layer.ln_1(x_RC)))
            mixed = [
                self._attend(qkv_R3HD[own], block.keys[index], block.values[index], rows, layer.band).flatten(1)
                for block, own, rows in spans
            ]
            x_RC = self._finish_layer(layer, x_RC, mixed[0] if len(mixed) == 1 else torch.cat(mixed))
        return self._logits(x_RC)

    @torch.inference_mode()
    def prefill(self, cache: KVCache, chunks: Sequence[Chunk], num_chunks: int) -> Tensor:
        """Store the keys and values of chunks and return the last layer's stream x_PTC for ``prompt_logits``.

        Chunks of one slot come in the order of their positions. Products run on ``num_chunks`` chunks, spare ones
        padded; attention runs on exactly the keys before a chunk's end, on a GPU for all chunks of one start at once.
        """
        for chunk in chunks:
            cache.block_of(chunk.slot)[0].reserve(chunk.start + CHUNK_TOKENS)
        tokens_M, positions_M = self._chunk_rows(chunks, num_chunks)
        x_MC = self._embed(tokens_M, positions_M)
        attend = (self._each_chunk if self.device.type == "cpu" else self._alike_chunks)(cache, chunks, positions_M)
        for index, layer in enumerate(self._layers):
            qkv_M3HD = self._heads(layer.qkv(layer.ln_1(x_MC)))
            mixed_MC = torch.zeros(x_MC.shape, dtype=self.dtype, device=self.device)
            attend(index, layer.band, qkv_M3HD, mixed_MC)
            x_MC = self._finish_layer(layer, x_MC, mixed_MC)
        return x_MC.view(num_chunks, CHUNK_TOKENS, -1)

    def _each_chunk(self, cache: KVCache, chunks: Sequence[Chunk], positions_M: Tensor) -> _ChunkAttention:
        """Return a layer's attention of prompts, chunk by chunk."""
        places = [cache.block_of(chunk.slot) for chunk in chunks]
        own = positions_M.view(-1, CHUNK_TOKENS)
        masks = [self._masks(own[i], chunk.start + CHUNK_TOKENS, self.dtype) for i, chunk in enumerate(chunks)]

        def attend(index: int, band: int | None, qkv_M3HD: Tensor, mixed_MC: Tensor) -> None:
            q_MHD, k_MHD, v_MHD = qkv_M3HD.unbind(1)
            for i, (chunk, (block, place)) in enumerate(zip(chunks, places, strict=True)):
                rows = slice(i * CHUNK_TOKENS, (i + 1) * CHUNK_TOKENS)
                end = chunk.start + CHUNK_TOKENS
                keys_HLD, values_HLD = block.keys[index][place], block.values[index][place]
                keys_HLD[:, chunk.start : end] = k_MHD[rows].transpose(0, 1)
                values_HLD[:, chunk.start : end] = v_MHD[rows].transpose(0, 1)
                mixed_1HTD = masked_attention(
                    q_MHD[None, rows].transpose(1, 2),
                    keys_HLD[None, :, :end],
                    values_HLD[None, :, :end],
                    masks[i][band],
                )
                mixed_MC[rows] = mixed_1HTD[0].transpose(0, 1).flatten(1)

        return attend

    def _alike_chunks(self, cache: KVCache, chunks: Sequence[Chunk], positions_M: Tensor) -> _ChunkAttention:
        """Return the same for a cache of one block, in few launches: all keys stored, then one call for each start."""
        (block,) = cache.blocks
        num_rows = len(chunks) * CHUNK_TOKENS
        positions = positions_M[:num_rows]
        slots_P = to_device(torch.tensor([chunk.slot for chunk in chunks]), self.device)
        slots = slots_P.repeat_interleave(CHUNK_TOKENS, output_size=num_rows)
        groups = []
        for start in sorted({chunk.start for chunk in chunks}):
            own_G = to_device(torch.tensor([i for i, c in enumerate(chunks) if c.start == start]), self.device)
            own_T = torch.arange(start, start + CHUNK_TOKENS, device=self.device)
            groups.append((own_G, start + CHUNK_TOKENS, self._masks(own_T, start + CHUNK_TOKENS, self.dtype)))

        def attend(index: int, band: int | None, qkv_M3HD: Tensor, mixed_MC: Tensor) -> None:
            keys_SHLD, values_SHLD = block.keys[index], block.values[index]
            keys_SHLD[slots, :, positions] = qkv_M3HD[:num_rows, 1]
            values_SHLD[slots, :, positions] = qkv_M3HD[:num_rows, 2]
            q_PHTD = qkv_M3HD[:, 0].unflatten(0, (-1, CHUNK_TOKENS)).transpose(1, 2)
            mixed_PTC = mixed_MC.unflatten(0, (-1, CHUNK_TOKENS))
            for own_G, end, masks in groups:
                slots_G = slots_P[own_G]
                mixed_GHTD = masked_attention(
                    q_PHTD[own_G], keys_SHLD[slots_G, :, :end], values_SHLD[slots_G, :, :end], masks[band]
                )
                mixed_PTC[own_G] = mixed_GHTD.transpose(1, 2).flatten(2)

        return attend

    @torch.inference_mode()
    def prompt_logits(self, x_TC: Tensor) -> Tensor:
        """Return the logits_TV of one chunk's stream, a constant number of rows."""
        return self._logits(x_TC)

    def _layer(self, index: int) -> _Layer:
        name = f"h.{index}"
        return _Layer(
            ln_1=self._norm(f"{name}.ln_1"),
            qkv=self._linear(f"{name}.attn.c_attn"),
            attention_out=self._linear(f"{name}.attn.c_proj"),
            ln_2=self._norm(f"{name}.ln_2"),
            fc_gelu=self._linear(f"{name}.mlp.c_fc", gelu=True),
            mlp_out=self._linear(f"{name}.mlp.c_proj"),
            band=self.shape.attention_band if self.shape.is_banded(index) else None,
        )

    def _tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._weights[name].detach().to(self.device, dtype)

    def _norm(self, name: str) -> _Norm:
        weight, bias = (self._tensor(f"{name}.{part}", torch.float32) for part in ("weight", "bias"))
        return _Norm(weight, bias, self._product_dtype)

    def _linear(self, name: str, *, gelu: bool = False) -> Linear:
        weight, bias = (self._tensor(f"{name}.{part}", self._product_dtype) for part in ("weight", "bias"))
        linear = make_linear(self.kernel, weight, bias, gelu=gelu)
        return linear if self.device.type == "cpu" else in_blocks(linear, GPU_BLOCK_ROWS)

    def _embed(self, tokens_M: Tensor, positions_M: Tensor) -> Tensor:
        # Padding of a last chunk may lie past the last position; what it computes is never read.
        known_M = positions_M.clamp(max=self.shape.num_positions - 1)
        return self._wte_VC[tokens_M].float() + self._wpe_LC[known_M]

    def _heads(self, qkv_M3C: Tensor) -> Tensor:
        """Return qkv_M3HD."""
        return qkv_M3C.to(self.dtype).unflatten(-1, (3, self.shape.n_head, -1))

    def _finish_layer(self, layer: _Layer, x_MC: Tensor, mixed_MC: Tensor) -> Tensor:
        x_MC = x_MC + layer.attention_out(mixed_MC)  # in fp32, as the stream is
        return x_MC + layer.mlp_out(layer.fc_gelu(layer.ln_2(x_MC)))

    def _logits_of(self, x_MC: Tensor) -> Tensor:
        x_MC = self._ln_f(x_MC)
        common_M1 = (x_MC.float() * self._mean_C).sum(1, keepdim=True)
        logits_MV = self._head(x_MC).float().add_(common_M1)
        logits_MV[:, self.shape.vocabulary_size :] = -torch.inf
        return logits_MV

    def _spans(
        self, cache: KVCache, positions_R: Tensor, slots: range, num_keys: tuple[int, ...]
    ) -> Iterator[tuple[CacheBlock, slice, Rows]]:
        """Yield the blocks that a step touches, with which of its rows those are and what they see."""
        mask_dtype = torch.float32 if self.attention == "products" else self.dtype
        for (block, rows, places), count in zip(_touched(cache, slots), num_keys, strict=True):
            own_R = positions_R[rows]
            places_R = torch.arange(places.start, places.stop, device=self.device)
            masks = {} if self.attention == "native" else self._masks(own_R[:, None], count, mask_dtype)
            yield block, rows, Rows(places, places_R, own_R, count, masks)

    def _masks(self, positions_M1: Tensor, num_keys: int, dtype: torch.dtype) -> dict[int | None, Tensor]:
        """Return the additive masks [..., L] of dense layers (key None) and banded ones (key the band)."""
        positions = positions_M1[..., None]
        distance = positions - torch.arange(num_keys, device=self.device)
        zeros = torch.zeros(distance.shape, dtype=dtype, device=self.device)
        masks: dict[int | None, Tensor] = {None: zeros.masked_fill(distance < 0, -torch.inf)}
        band = self.shape.attention_band
        if band is not None:
            masks[band] = masks[None].masked_fill(distance >= band, -torch.inf)
        return masks

    def _chunk_rows(self, chunks: Sequence[Chunk], num_chunks: int) -> tuple[Tensor, Tensor]:
        tokens_PT = torch.zeros(num_chunks, CHUNK_TOKENS, dtype=torch.int64)
        starts_P = torch.zeros(num_chunks, 1, dtype=torch.int64)
        for i, chunk in enumerate(chunks):
            tokens_PT[i, : len(chunk.ids)] = torch.tensor(chunk.ids)
            starts_P[i] = chunk.start
        positions_PT = starts_P + torch.arange(CHUNK_TOKENS)
        return to_device(tokens_PT.flatten(), self.device), to_device(positions_PT.flatten(), self.device)


def _touched(cache: KVCache, slots: range) -> Iterator[tuple[CacheBlock, slice, slice]]:
    """Yield the blocks that hold some of the slots, with which rows of the step and places of the block those are."""
    for block in cache.blocks:
        first, stop = max(slots.start, block.slots.start), min(slots.stop, block.slots.stop)
        if first < stop:
            rows = slice(first - slots.start, stop - slots.start)
            yield block, rows, slice(first - block.slots.start, stop - block.slots.start)
