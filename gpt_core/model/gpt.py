"""Exact GPT-2 (and GPT-3: the same with other sizes and an optional attention band).

Decoder-only, pre-LayerNorm, learned positions, tanh GELU, biases everywhere, output head
tied to the input embedding (Radford et al. 2019, section 2.3).

Shapes: B sequences, T positions, C width, H heads, D head width, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt_core.errors import SettingsError
from gpt_core.model.attention import causal_attention
from gpt_core.model.presets import INITIAL_SIGMA, ModelShape

LAYER_NORM_EPSILON = 1e-5
_TWICE_ROOT = 2 * math.sqrt(2 / math.pi)


class Attention(nn.Module):
    """Causal self-attention; ``band`` limits it to the last ``band`` positions."""

    def __init__(self, shape: ModelShape, band: int | None) -> None:
        super().__init__()
        self.num_heads = shape.n_head
        self.dropout = shape.dropout
        self.band = band
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return what attention adds to the stream."""
        qkv = self.c_attn(x_BTC).unflatten(-1, (3, self.num_heads, -1))
        q_BHTD, k_BHTD, v_BHTD = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        out_BHTD = causal_attention(q_BHTD, k_BHTD, v_BHTD, band=self.band, dropout=dropout)
        return self.c_proj(out_BHTD.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers of 4 x width with the tanh approximation of GELU between them."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.n_embd, 4 * shape.n_embd)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return what the MLP adds to the stream."""
        return self.c_proj(gelu(self.c_fc(x_BTC)))


def gelu(x: Tensor) -> Tensor:
    """Return the tanh approximation of GELU."""
    return gelu_by_sigmoid(x) if torch.compiler.is_compiling() else F.gelu(x, approximate="tanh")


def gelu_by_sigmoid(x: Tensor) -> Tensor:
    """Return the same function through (1 + tanh u) / 2 = sigmoid(2 u), in fp32.

    Compiled for a CPU, forward and backward of 768 x 512 take 0.83 ms so, and 2.09 ms with tanh (one core,
    2026-11-23). Uncompiled it would be many passes.
    """
    wide = x.float()
    twice_u = wide * (_TWICE_ROOT + 0.044715 * _TWICE_ROOT * wide * wide)
    return (wide * torch.sigmoid(twice_u)).to(x.dtype)


def embedded(weight_VC: Tensor, ids: Tensor) -> Tensor:
    """Return the rows of a table.

    On a CPU a row's gradients are added up in fp32 and rounded once, whatever the type of the table: in bf16, as the
    library adds them there, a sum of ones stays at 256.
    """
    if weight_VC.device.type != "cpu" or weight_VC.dtype == torch.float32:
        return F.embedding(ids, weight_VC)
    used_U, places = ids.unique(return_inverse=True)
    return F.embedding(places, weight_VC.index_select(0, used_U).float()).to(weight_VC.dtype)


class Block(nn.Module):
    """One layer: attention and MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd, eps=LAYER_NORM_EPSILON)
        self.attn = Attention(shape, shape.attention_band if shape.is_banded(layer) else None)
        self.ln_2 = nn.LayerNorm(shape.n_embd, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(shape)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return the stream after this layer."""
        x_BTC = x_BTC + self.dropout(self.attn(self.ln_1(x_BTC)))
        return x_BTC + self.dropout(self.mlp(self.ln_2(x_BTC)))


def _embedding(count: int, width: int) -> nn.Embedding:
    """Return a table without values; drawing them where there is nothing to fill costs a second: torch's compiler."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


def recomputed(block: Callable[[Tensor], Tensor], x_BTC: Tensor) -> Tensor:
    """Return block(x_BTC), keeping x_BTC alone for the backward pass; dropout is drawn again as it was."""
    return checkpoint(block, x_BTC, use_reentrant=False)  # type: ignore[return-value]


class GPT(nn.Module):
    """The whole model; parameters are uninitialised until ``initialise`` or a checkpoint fills them.

    Args:
        shape: The sizes.
        device: Where the parameters are made; "meta" makes none, for counting.
    """

    def __init__(self, shape: ModelShape, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.shape = shape
        self.recomputes_blocks = False
        """Whether training keeps each block's input alone and computes its inside again in the backward pass."""
        with torch.device("meta"):
            self.wte = _embedding(shape.vocabulary_size, shape.n_embd)
            self.wpe = _embedding(shape.num_positions, shape.n_embd)
            self.h = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layer))
            self.ln_f = nn.LayerNorm(shape.n_embd, eps=LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(shape.dropout)
        self.to_empty(device=device)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Return the final stream x_BTC, after the last LayerNorm and before the output head.

        Raises:
            SettingsError: More positions than the model has.
        """
        return self.layers(self.embeddings(ids_BT))

    def embeddings(self, ids_BT: Tensor) -> Tensor:
        """Return the stream before the first layer: the tokens' and the positions' embeddings added.

        Raises:
            SettingsError: More positions than the model has.
        """
        num_positions = ids_BT.shape[1]
        if num_positions > self.shape.num_positions:
            raise SettingsError(
                "model input",
                f"{num_positions} positions",
                f"at most {self.shape.num_positions}",
                "shorten the sequence or train with more positions",
            )
        return self.dropout(embedded(self.wte.weight, ids_BT) + self.wpe.weight[:num_positions])

    def layers(self, x_BTC: Tensor, blocks: Sequence[Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        """Return the final stream for that of the embeddings: the part that is worth compiling.

        blocks: What is called in place of the model's own, its blocks compiled.
        """
        for block in self.h if blocks is None else blocks:
            x_BTC = recomputed(block, x_BTC) if self.recomputes_blocks and self.training else block(x_BTC)
        return self.ln_f(x_BTC)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return logits_BTV. For training use ``loss.next_token_loss``, which never holds them whole."""
        return F.linear(self.hidden(ids_BT), self.wte.weight)

    @torch.no_grad()
    def initialise(self, seed: int) -> "GPT":
        """Fill every parameter as GPT-2 does; the seed and the tensor's name decide the values alone."""
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_values(name, tuple(parameter.shape), self.shape.n_layer, seed))
        return self


def initial_values(name: str, size: tuple[int, ...], num_layers: int, seed: int) -> Tensor:
    """Return the fp32 starting values of one tensor.

    N(0, 0.02); projections into the residual stream N(0, 0.02 / sqrt(2 L)); biases 0; LayerNorm
    weights 1. Drawn in float64 from a counter-based generator keyed by (seed, name), so that the
    bits depend neither on the device nor on which tensors were drawn before.
    """
    if name.endswith(".bias"):
        return torch.zeros(size)
    if len(size) == 1:
        return torch.ones(size)
    sigma = INITIAL_SIGMA / math.sqrt(2 * num_layers) if name.endswith("c_proj.weight") else INITIAL_SIGMA
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return torch.from_numpy((generator.standard_normal(size) * sigma).astype(np.float32))
