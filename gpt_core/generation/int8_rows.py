"""What stands before and behind a product in int8: rows rounded to 8 bits, sums scaled back, the bias, GELU.

In C++ where it can be compiled, else in PyTorch, whose dozen passes over the rows take as long as half of the products
(64 rows of GPT-2 on Zen 5, one thread, 2026-11-28: 7.8 ms a step of 40).

Shapes: M rows, I values in, O values out.
"""

import ctypes
import functools
import logging
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_core.generation.native_code import LANES, CompileError, compiled, in_parts

_log = logging.getLogger(__name__)
PEAK = 127.0
ZERO = 128
_TINY = 1e-30


class Int8Rows(Protocol):
    """Both steps; ``peak_M`` is each row's largest size, which stands for PEAK."""

    def quantize(self, x_MI: Tensor) -> tuple[Tensor, Tensor]:
        """Return uint8 rounded_MI, ZERO for zero, and fp32 peak_M of fp32 or bf16 rows."""
        ...

    def rescale(self, x_MO: Tensor, peak_M: Tensor, bias_O: Tensor | None, *, gelu: bool) -> Tensor:
        """Return fp32 x times peak / PEAK, plus the bias, under GELU where asked; x may be changed."""
        ...


class TorchRows:
    """By PyTorch."""

    def quantize(self, x_MI: Tensor) -> tuple[Tensor, Tensor]:
        """Round to nearest."""
        peak_M = x_MI.abs().amax(1).float().clamp_min_(_TINY)
        # Cut off after half is added: rounding of numbers that are never below 1.
        return (x_MI * (PEAK / peak_M)[:, None]).add_(ZERO + 0.5).to(torch.uint8), peak_M

    def rescale(self, x_MO: Tensor, peak_M: Tensor, bias_O: Tensor | None, *, gelu: bool) -> Tensor:
        """Scale back."""
        scale_M1 = (peak_M / PEAK)[:, None]
        x_MO = x_MO.mul_(scale_M1) if bias_O is None else torch.addcmul(bias_O, x_MO, scale_M1)
        return F.gelu(x_MO, approximate="tanh") if gelu else x_MO


class NativeRows:
    """In C++; widths are multiples of LANES.

    Raises:
        OSError, subprocess.SubprocessError: It cannot be compiled here.
    """

    def __init__(self) -> None:
        library = compiled("int8_rows.cpp")
        self._quantize = {torch.float32: library.quantize_float, torch.bfloat16: library.quantize_bf16}
        self._rescale = library.rescale
        for function in self._quantize.values():
            function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2
        self._rescale.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
        for function in (*self._quantize.values(), self._rescale):
            function.restype = None

    def quantize(self, x_MI: Tensor) -> tuple[Tensor, Tensor]:
        """Round to nearest."""
        x_MI = x_MI.contiguous()
        rounded_MI = x_MI.new_empty(x_MI.shape, dtype=torch.uint8)
        peak_M = x_MI.new_empty(len(x_MI), dtype=torch.float32)
        call = self._quantize[x_MI.dtype]

        def quantize_rows(rows: slice) -> None:
            addresses = [tensor[rows].data_ptr() for tensor in (x_MI, rounded_MI, peak_M)]
            call(*addresses, len(peak_M[rows]), x_MI.shape[1])

        in_parts(len(x_MI), quantize_rows)
        return rounded_MI, peak_M

    def rescale(self, x_MO: Tensor, peak_M: Tensor, bias_O: Tensor | None, *, gelu: bool) -> Tensor:
        """Scale back, in place."""
        bias = None if bias_O is None else bias_O.data_ptr()

        def rescale_rows(rows: slice) -> None:
            own = x_MO[rows]
            self._rescale(own.data_ptr(), peak_M[rows].data_ptr(), bias, len(own), x_MO.shape[1], gelu)

        in_parts(len(x_MO), rescale_rows)
        return x_MO


@functools.cache
def _native_rows() -> NativeRows | None:
    """Return the rows in C++, None where they cannot be compiled here or are wrong."""
    try:
        native = NativeRows()
    except CompileError as error:
        _log.warning("generation: int8 is slower than it could be, its C++ was not compiled: %s", error)
        return None
    generator = torch.Generator().manual_seed(0)
    x_MI, bias_I = torch.randn(3, 2 * LANES, generator=generator), torch.randn(2 * LANES, generator=generator)
    (found_MI, peak_M), (expected_MI, _) = native.quantize(x_MI), TorchRows().quantize(x_MI)
    expected_MO = TorchRows().rescale(x_MI.clone(), peak_M, bias_I, gelu=True)
    found_MO = native.rescale(x_MI.clone(), peak_M, bias_I, gelu=True)
    is_right = (found_MI.int() - expected_MI.int()).abs().max() <= 1 and torch.allclose(
        found_MO, expected_MO, atol=1e-5
    )
    if is_right:
        return native
    _log.warning("generation: int8 is slower than it could be, its C++ was compiled wrong; set CXX to another")
    return None


def int8_rows(num_inputs: int, num_outputs: int) -> Int8Rows:
    """Return the faster one that works for a product of such widths."""
    native = None if num_inputs % LANES or num_outputs % LANES else _native_rows()
    return native or TorchRows()
