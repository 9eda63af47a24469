"""One forward pass of a GPT with everything it computes on the way kept, in fp32, for people to look at.

Used by ``inspection.py``. Invariant: the same function as ``model.GPT`` without dropout; the
stream is kept after every addition, so that what a layer adds and what comes out agree.

Shapes: T positions, C width, H heads, D head width, V vocabulary, S stages of the stream (the
embedding and one a layer).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_core.model.attention import band_mask
from gpt_core.model.gpt import LAYER_NORM_EPSILON, gelu
from gpt_core.model.presets import ModelShape


@dataclass(frozen=True, slots=True)
class LayerActivations:
    """What one layer computed."""

    before: Tensor
    """[T, C] the stream that enters."""
    normed: Tensor
    """[T, C] the stream behind the first LayerNorm."""
    q: Tensor
    k: Tensor
    v: Tensor
    """Queries, keys and values, each [H, T, D]."""
    mixed: Tensor
    """[H, T, D] each head's sum of values."""
    attention: Tensor
    """[T, C] what attention adds to the stream."""
    mlp: Tensor
    """[T, C] what the MLP adds to the stream."""
    after: Tensor
    """[T, C] the stream that leaves."""
    visible: Tensor
    """[T, T] true where position i may look at j."""

    @property
    def scores(self) -> Tensor:
        """[H, T, T] products of queries and keys over the root of the head's width, before the mask."""
        return self.q @ self.k.mT / math.sqrt(self.q.shape[-1])

    @property
    def weights(self) -> Tensor:
        """[H, T, T] attention weights: the softmax of the scores that the mask leaves."""
        return self.scores.masked_fill(~self.visible, -math.inf).softmax(-1)


@dataclass(frozen=True, slots=True)
class Activations:
    """What a forward pass computed, layer by layer."""

    token: Tensor
    """[T, C] the tokens' rows of the embedding."""
    position: Tensor
    """[T, C] the positions' rows of theirs."""
    layers: tuple[LayerActivations, ...]

    @property
    def num_positions(self) -> int:
        """Tokens of the sequence."""
        return len(self.token)

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        one = self.layers[0]
        kept = (one.before, one.normed, one.q, one.k, one.v, one.mixed)
        added = (one.attention, one.mlp, one.after)
        return len(self.layers) * sum(tensor.numel() * tensor.element_size() for tensor in (*kept, *added))

    def stream(self, position: int) -> Tensor:
        """Return the stream at one position, [S, C]: behind the embedding, then behind every layer."""
        stages = [self.layers[0].before, *(layer.after for layer in self.layers)]
        return torch.stack([stage[position] for stage in stages])


@torch.inference_mode()
def run_forward(weights: Mapping[str, Tensor], shape: ModelShape, ids: tuple[int, ...]) -> Activations:
    """Return all activations of a sequence.

    Args:
        weights: fp32 tensors under the parameter names of ``model.GPT``, on one device.
        shape: The model's sizes; dropout is not applied.
        ids: 1 to ``shape.num_positions`` token ids, each below the vocabulary's size.
    """
    device = weights["wte.weight"].device
    token_TC = weights["wte.weight"][torch.tensor(ids, device=device)]
    position_TC = weights["wpe.weight"][: len(ids)]
    stream_TC, layers = token_TC + position_TC, []
    for index in range(shape.n_layer):
        band = shape.attention_band if shape.is_banded(index) and shape.attention_band else len(ids)
        layers.append(_run_layer(weights, f"h.{index}", shape, stream_TC, band_mask(len(ids), band, device)))
        stream_TC = layers[-1].after
    return Activations(token_TC, position_TC, tuple(layers))


@torch.inference_mode()
def logits_of(weights: Mapping[str, Tensor], stream_SC: Tensor) -> Tensor:
    """Return logits_SV: the last LayerNorm and the output head on states of the stream, of any layer."""
    return F.linear(_norm(weights, "ln_f", stream_SC), weights["wte.weight"])


def _run_layer(
    weights: Mapping[str, Tensor], name: str, shape: ModelShape, before_TC: Tensor, visible_TT: Tensor
) -> LayerActivations:
    normed_TC = _norm(weights, f"{name}.ln_1", before_TC)
    qkv = _linear(weights, f"{name}.attn.c_attn", normed_TC).unflatten(-1, (3, shape.n_head, -1))
    q_HTD, k_HTD, v_HTD = qkv.permute(1, 2, 0, 3)
    scores_HTT = q_HTD @ k_HTD.mT / math.sqrt(shape.head_width)
    mixed_HTD = scores_HTT.masked_fill(~visible_TT, -math.inf).softmax(-1) @ v_HTD
    attention_TC = _linear(weights, f"{name}.attn.c_proj", mixed_HTD.transpose(0, 1).flatten(1))
    middle_TC = before_TC + attention_TC
    inner = gelu(_linear(weights, f"{name}.mlp.c_fc", _norm(weights, f"{name}.ln_2", middle_TC)))
    mlp_TC = _linear(weights, f"{name}.mlp.c_proj", inner)
    return LayerActivations(
        before=before_TC,
        normed=normed_TC,
        q=q_HTD,
        k=k_HTD,
        v=v_HTD,
        mixed=mixed_HTD,
        attention=attention_TC,
        mlp=mlp_TC,
        after=middle_TC + mlp_TC,
        visible=visible_TT,
    )


def _linear(weights: Mapping[str, Tensor], name: str, x_TC: Tensor) -> Tensor:
    return F.linear(x_TC, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Mapping[str, Tensor], name: str, x_TC: Tensor) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.layer_norm(x_TC, weight.shape, weight, bias, LAYER_NORM_EPSILON)
