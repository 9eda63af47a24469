"""Matrix products in C++, with bias and GELU in the same pass, for CPUs with AVX-512 and without AMX.

In int8 sums are whole numbers, and so those of oneDNN. In bf16 a sum runs over the inputs in their order. So a row's
bits do not depend on how many rows there are. oneDNN takes, with what surrounds its int8 products, at 16 and 64 rows of
GPT-2's layers 1.4 to 1.7 and 1.15 to 1.3 times as long in int8, 1.4 and 1.08 times in bf16 (Zen 4, one thread,
2026-11-30).

Shapes: M rows, I values in, O values out.
"""

import ctypes
import functools
import itertools
import logging
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_core.generation.native_code import CompileError, compiled, in_parts
from gpt_core.model.precision import has_matrix_units

_log = logging.getLogger(__name__)
_PANEL_OUTPUTS = 32
_ADDED_AT_ONCE = {torch.int8: 4, torch.bfloat16: 2}
_INPUT_DTYPES = {torch.int8: torch.uint8, torch.bfloat16: torch.bfloat16}
_OUTPUT_DTYPES = {torch.int8: torch.float32, torch.bfloat16: torch.bfloat16}
_MOST_ROWS = 8
"""As kMostRows in product.cpp, which has code of its own for each number of rows up to it."""
_MAX_INPUTS = 2**16
"""255 x 127 for each input stays below 2^31."""

Int8Product = Callable[[Tensor, Tensor], Tensor]
"""(uint8 rounded_MI with 128 for zero, fp32 peak_M that stands for 127) -> fp32 x_MO."""
Bf16Product = Callable[[Tensor], Tensor]
"""bf16 x_MI -> bf16 x_MO, added up in fp32."""


class _Arguments(ctypes.Structure):
    """As ``Product`` in product.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "panels", "bias", "y")),
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "outputs", "with_gelu")),
        *((name, ctypes.c_void_p) for name in ("peaks", "scales", "zeros")),
    )


def int8_product(
    rounded_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None, *, gelu: bool = False
) -> Int8Product | None:
    """Return the product with int8 weights, a scale for each output; None where oneDNN's is to be used."""
    return _int8_product(rounded_OI, scale_O, bias_O, gelu=gelu) if _fits(rounded_OI) and _int8_works() else None


def bf16_product(weight_OI: Tensor, bias_O: Tensor | None, *, gelu: bool = False) -> Bf16Product | None:
    """Return the product with bf16 weights; None where oneDNN's is to be used."""
    return _Panels(weight_OI, bias_O, gelu=gelu) if _fits(weight_OI) and _bf16_works() else None


def _fits(weight_OI: Tensor) -> bool:
    num_outputs, num_inputs = weight_OI.shape
    at_once = _ADDED_AT_ONCE[weight_OI.dtype]
    return num_outputs % _PANEL_OUTPUTS == 0 and num_inputs % at_once == 0 and num_inputs <= _MAX_INPUTS


def _int8_product(rounded_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None, *, gelu: bool) -> Int8Product:
    multiply = _Panels(rounded_OI, bias_O, gelu=gelu)
    zero_O = 128 * rounded_OI.sum(1, dtype=torch.int32)
    scale_O = scale_O.float().contiguous()
    assert scale_O.shape == zero_O.shape

    def product(rounded_MI: Tensor, peak_M: Tensor) -> Tensor:
        assert peak_M.dtype == torch.float32
        assert peak_M.shape == rounded_MI.shape[:1]
        assert peak_M.is_contiguous()
        return multiply(rounded_MI, peak_M, scale_O, zero_O)

    return product


class _Panels:
    """Weights laid out as product.cpp wants them, and the call.

    Raises:
        OSError, subprocess.SubprocessError: It cannot be compiled here.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, gelu: bool) -> None:
        self._multiply = _compiled_multiply("INT8" if weight_OI.dtype == torch.int8 else "BF16")
        self._num_outputs, self._num_inputs = weight_OI.shape
        self._dtype = weight_OI.dtype
        at_once = _ADDED_AT_ONCE[weight_OI.dtype]
        steps = weight_OI.reshape(-1, _PANEL_OUTPUTS, self._num_inputs // at_once, at_once)
        self._panels = steps.transpose(1, 2).contiguous()
        self._bias_O = None if bias_O is None else bias_O.float().contiguous()
        assert bias_O is None or bias_O.shape == weight_OI.shape[:1]
        self._gelu = gelu

    def __call__(self, x_MI: Tensor, *scaling: Tensor) -> Tensor:
        """Multiply; ``scaling`` are the rows' peaks, the outputs' scales and their zeros, in int8 alone."""
        x_MI = x_MI.contiguous()
        # Handed over as addresses: nothing behind them looks at sizes and types again.
        assert x_MI.dtype == _INPUT_DTYPES[self._dtype]
        assert x_MI.shape == (len(x_MI), self._num_inputs)
        x_MO = x_MI.new_empty(len(x_MI), self._num_outputs, dtype=_OUTPUT_DTYPES[self._dtype])
        bias = None if self._bias_O is None else self._bias_O.data_ptr()
        arguments = _Arguments(
            *(x_MI.data_ptr(), self._panels.data_ptr(), bias, x_MO.data_ptr()),
            *(len(x_MI), self._num_inputs, self._num_outputs, self._gelu),
            *(tensor.data_ptr() for tensor in scaling),
        )
        in_parts(len(self._panels), lambda part: self._multiply(ctypes.byref(arguments), part.start, part.stop))
        return x_MO


@functools.cache
def _compiled_multiply(kind: Literal["INT8", "BF16"]) -> Callable[..., None]:
    multiply = compiled("product.cpp", **{kind: 1}).multiply
    multiply.argtypes = [ctypes.POINTER(_Arguments), ctypes.c_int64, ctypes.c_int64]
    multiply.restype = None
    return multiply


@functools.cache
def _int8_works() -> bool:
    """Compare with whole numbers in 64 bits, the largest that can meet among them."""
    generator = torch.Generator().manual_seed(0)
    rounded_MI = torch.randint(1, 256, (_MOST_ROWS, 64), generator=generator).to(torch.uint8)
    rounded_OI = torch.randint(-127, 128, (2 * _PANEL_OUTPUTS, 64), generator=generator).to(torch.int8)
    rounded_MI[0], rounded_OI[:2] = 255, torch.tensor([[127], [-127]])
    peak_M = torch.rand(_MOST_ROWS, generator=generator) + 0.5
    scale_O = torch.rand(len(rounded_OI), generator=generator) / 1000
    sums_MO = (rounded_MI.long() - 128) @ rounded_OI.long().T
    expected_MO = sums_MO * scale_O.double() * (peak_M.double() / 127)[:, None]

    def make(bias_O: Tensor, *, gelu: bool) -> Callable[[int], Tensor]:
        product = _int8_product(rounded_OI, scale_O, bias_O, gelu=gelu)
        return lambda count: product(rounded_MI[:count], peak_M[:count])

    return _is_right(make, expected_MO, tolerance=1e-5)


@functools.cache
def _bf16_works() -> bool:
    generator = torch.Generator().manual_seed(0)
    x_MI, weight_OI = (
        torch.randn(rows, 64, generator=generator).bfloat16() for rows in (_MOST_ROWS, 2 * _PANEL_OUTPUTS)
    )

    def make(bias_O: Tensor, *, gelu: bool) -> Callable[[int], Tensor]:
        product = _Panels(weight_OI, bias_O, gelu=gelu)
        return lambda count: product(x_MI[:count])

    return _is_right(make, x_MI.double() @ weight_OI.double().T, tolerance=1e-2)


def _is_right(make: Callable[..., Callable[[int], Tensor]], expected_MO: Tensor, tolerance: float) -> bool:
    """Say whether the C++ gives what is expected for each number of rows, so that a mistake costs speed alone.

    A CPU without the instructions, or a machine without a compiler, is no reason to complain: oneDNN does the work.
    """
    if has_matrix_units():
        return False
    bias_O = torch.linspace(-3, 3, expected_MO.shape[1])
    expected_MO = expected_MO + bias_O.double()
    expected = {False: expected_MO, True: F.gelu(expected_MO, approximate="tanh")}
    try:
        products = {gelu: make(bias_O, gelu=gelu) for gelu in expected}
    except CompileError as error:
        _log.info("generation: products are oneDNN's: %s", error)
        return False
    cases = itertools.product(expected, range(1, _MOST_ROWS + 1))
    if all(_is_close(products[gelu](count), expected[gelu][:count], tolerance) for gelu, count in cases):
        return True
    _log.warning("generation: products are slower than they could be, C++ was compiled wrong; set CXX to another")
    return False


def _is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance)
