"""The engine's matrix products: weights packed once where the CPU library can, ``F.linear`` elsewhere.

The one file with private torch operators. A packed product was measured 1.2-1.6 times as fast
as ``F.linear`` at 64 rows in bf16, and in fp32 its bits do not depend on the number of rows from 2 to 1024.
The int8 product of GPT-2's layers at 64 rows took a quarter of the packed fp32 one's processor time
(Xeon with AVX-512 VNNI, without AMX, one thread, 2026-11-23: 0.40 and 1.59 ms for 768 to 2304).
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_core.generation.int8_rows import PEAK, ZERO, Int8Rows, int8_rows
from gpt_core.generation.native_product import Int8Product, bf16_product, int8_product

Linear = Callable[[Tensor], Tensor]
Kernel = Literal["plain", "packed", "int8"]
PACKED_ROWS = 64  # the packed layout is chosen for about this many rows; others are right, too
_TINY = 1e-30


def plain_linear(weight_OI: Tensor, bias_O: Tensor | None, *, gelu: bool = False) -> Linear:
    """Return x_MI -> x_MO by ``F.linear``, followed by the tanh approximation of GELU where asked."""

    def apply(x_MI: Tensor) -> Tensor:
        x_MO = F.linear(x_MI, weight_OI, bias_O)
        return F.gelu(x_MO, approximate="tanh") if gelu else x_MO

    return apply


def packed_linear(weight_OI: Tensor, bias_O: Tensor | None, *, gelu: bool = False) -> Linear:
    """Return the same function with the weight packed for this CPU and GELU fused in.

    Raises:
        RuntimeError, AttributeError: This torch has no such operator, or not for this type.
    """
    if weight_OI.dtype == torch.bfloat16 and (product := bf16_product(weight_OI, bias_O, gelu=gelu)):
        return product
    operators: Any = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight_OI.contiguous(), PACKED_ROWS)
    multiply = operators._linear_pointwise
    activation = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def apply(x_MI: Tensor) -> Tensor:
        return multiply(x_MI, packed, bias_O, *activation)

    return apply


def int8_linear(weight_OI: Tensor, bias_O: Tensor | None, *, gelu: bool = False) -> Linear:
    """Return x_MI -> fp32 x_MO with weights in int8, a scale for each output, and activations in 8 bits, one a row.

    Sums are whole numbers, so no order of adding changes them. Symmetric, rounded to nearest (Dettmers et al.
    2022, section 2.1). Activations are stored as 1 to 255 with 128 for zero: there are fast instructions for
    unsigned ones on every CPU with VNNI, for signed ones only with AMX.

    Raises:
        RuntimeError, AttributeError: This torch has no such operators.
    """
    scale_O = weight_OI.float().abs().amax(1) / PEAK
    rounded_OI = (weight_OI.float() / scale_O[:, None].clamp_min(_TINY)).round_().to(torch.int8).contiguous()
    rows = int8_rows(weight_OI.shape[1], len(scale_O))
    product = int8_product(rounded_OI, scale_O, bias_O, gelu=gelu)
    product = product or _onednn_product(rounded_OI, scale_O, bias_O, rows, gelu=gelu)
    return lambda x_MI: product(*rows.quantize(x_MI))


def _onednn_product(
    rounded_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None, rows: Int8Rows, *, gelu: bool
) -> Int8Product:
    operators: Any = torch.ops.onednn
    # The shape only chooses the layout; a weight that is not contiguous would be packed wrong.
    packed = operators.qlinear_prepack(rounded_OI, [PACKED_ROWS, rounded_OI.shape[1]])
    zero_O = torch.zeros(len(scale_O), dtype=torch.int64)
    output = (None, 1.0, 0, torch.float32, "none", [], "")

    def product(rounded_MI: Tensor, peak_M: Tensor) -> Tensor:
        x_MO = operators.qlinear_pointwise(rounded_MI, 1.0, ZERO, packed, scale_O, zero_O, *output)
        return rows.rescale(x_MO, peak_M, bias_O, gelu=gelu)

    return product


def make_linear(kernel: Kernel, weight_OI: Tensor, bias_O: Tensor | None, *, gelu: bool = False) -> Linear:
    """Return the product by one of the three ways above."""
    make = {"plain": plain_linear, "packed": packed_linear, "int8": int8_linear}[kernel]
    return make(weight_OI, bias_O, gelu=gelu)


def can_compute_int8(device: torch.device) -> bool:
    """Say whether int8 products work here and are exact, tried on the largest values that can meet.

    A CPU without VNNI adds pairs in 16 bits, which those exceed.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    signs = torch.ones(48, 64)
    signs[1::2] = -1.0
    try:
        found = int8_linear(signs, None)(signs[:5])
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.equal(found.round(), signs[:5] @ signs.T)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether packed products work here and agree with ``F.linear`` to rounding, by trying one."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator).to(dtype)
    bias, x = (
        torch.randn(96, generator=generator).to(dtype),
        torch.randn(5, 64, generator=generator).to(dtype),
    )
    try:
        found = packed_linear(weight, bias, gelu=True)(x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    expected = plain_linear(weight.float(), bias.float(), gelu=True)(x.float())
    return torch.allclose(found.float(), expected, rtol=2e-2, atol=2e-1 if dtype == torch.bfloat16 else 1e-3)
