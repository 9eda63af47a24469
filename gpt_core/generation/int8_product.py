"""Products in int8 in C++, for CPUs with AVX-512 VNNI and without AMX, with bias and GELU in the same pass.

Sums are whole numbers, so these and oneDNN's give the same bits. For 16 and 64 rows of GPT-2's layers oneDNN and
``int8_rows`` take 1.3 to 1.5 and 1.15 to 1.3 times as long (Zen 4, one thread, 2026-11-30).

Shapes: M rows, I values in, O values out.
"""

import ctypes
import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_core.generation.native_code import CompileError, compiled, in_parts
from gpt_core.model.precision import has_matrix_units

_log = logging.getLogger(__name__)
PANEL_OUTPUTS = 32
_SUMMED_AT_ONCE = 4
_MAX_INPUTS = 2**16
"""255 x 127 for each input stays below 2^31."""

Int8Product = Callable[[Tensor, Tensor], Tensor]
"""(uint8 rounded_MI with 128 for zero, fp32 peak_M that stands for 127) -> fp32 x_MO."""


class _Arguments(ctypes.Structure):
    """As ``Product`` in int8_product.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "peaks", "panels", "zeros", "scales", "bias", "y")),
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "outputs", "with_gelu")),
    )


def native_product(
    rounded_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None, *, gelu: bool = False
) -> Int8Product | None:
    """Return the product with int8 weights, a scale for each output; None where something else is faster or right."""
    num_outputs, num_inputs = rounded_OI.shape
    is_fitting = num_outputs % PANEL_OUTPUTS == 0 and num_inputs % _SUMMED_AT_ONCE == 0 and num_inputs <= _MAX_INPUTS
    return _packed(rounded_OI, scale_O, bias_O, gelu=gelu) if is_fitting and _works() else None


def _packed(rounded_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None, *, gelu: bool) -> Int8Product:
    """Lay the weights out as int8_product.cpp wants them.

    Raises:
        OSError, subprocess.SubprocessError: It cannot be compiled here.
    """
    multiply = _multiply()
    num_outputs, num_inputs = rounded_OI.shape
    quads = rounded_OI.view(-1, PANEL_OUTPUTS, num_inputs // _SUMMED_AT_ONCE, _SUMMED_AT_ONCE)
    panels = quads.transpose(1, 2).contiguous()
    zero_O = 128 * rounded_OI.sum(1, dtype=torch.int32)
    scale_O = scale_O.float().contiguous()
    bias_O = None if bias_O is None else bias_O.float().contiguous()

    def product(rounded_MI: Tensor, peak_M: Tensor) -> Tensor:
        x_MO = peak_M.new_empty(len(peak_M), num_outputs)
        # Handed over as addresses: nothing behind them looks at sizes and types again.
        assert rounded_MI.dtype == torch.uint8
        assert peak_M.dtype == torch.float32
        assert rounded_MI.shape == (len(peak_M), num_inputs)
        assert rounded_MI.is_contiguous()
        assert peak_M.is_contiguous()
        tensors = (rounded_MI, peak_M, panels, zero_O, scale_O, bias_O, x_MO)
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        arguments = ctypes.byref(_Arguments(*addresses, len(peak_M), num_inputs, num_outputs, gelu))
        in_parts(len(panels), lambda part: multiply(arguments, part.start, part.stop))
        return x_MO

    return product


@functools.cache
def _multiply() -> Callable[..., None]:
    multiply = compiled("int8_product.cpp").multiply
    multiply.argtypes = [ctypes.POINTER(_Arguments), ctypes.c_int64, ctypes.c_int64]
    multiply.restype = None
    return multiply


@functools.cache
def _works() -> bool:
    """Compare with whole numbers in 64 bits, the largest that can meet among them, so that a mistake costs speed alone.

    A CPU without VNNI, or a machine without a compiler, is no reason to complain: oneDNN does the work.
    """
    if has_matrix_units():
        return False
    generator = torch.Generator().manual_seed(0)
    rounded_MI = torch.randint(1, 256, (11, 64), generator=generator).to(torch.uint8)
    rounded_OI = torch.randint(-127, 128, (2 * PANEL_OUTPUTS, 64), generator=generator).to(torch.int8)
    rounded_MI[0], rounded_OI[:2] = 255, torch.tensor([[127], [-127]])
    peak_M, scale_O, bias_O = torch.rand(11) + 0.5, torch.rand(len(rounded_OI)) / 1000, torch.randn(len(rounded_OI))
    sums_MO = (rounded_MI.long() - 128) @ rounded_OI.long().T
    expected_MO = sums_MO * scale_O.double() * (peak_M.double() / 127)[:, None] + bias_O.double()
    try:
        is_right = all(
            torch.allclose(
                _packed(rounded_OI, scale_O, bias_O, gelu=gelu)(rounded_MI, peak_M).double(), expected, atol=1e-5
            )
            for gelu, expected in ((False, expected_MO), (True, F.gelu(expected_MO, approximate="tanh")))
        )
    except CompileError as error:
        _log.info("generation: products in int8 are oneDNN's: %s", error)
        return False
    if not is_right:
        _log.warning("generation: int8 is slower than it could be, its C++ was compiled wrong; set CXX to another")
    return is_right
