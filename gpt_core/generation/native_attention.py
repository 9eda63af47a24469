"""Attention of decode steps in C++, compiled for this machine when an engine loads; a third of a second.

PyTorch's products read the cache at a third of the rate that memory allows, and all of it that there is memory for:
64 rows of GPT-2, 12 layers, take 13.6 ms at 64 positions in bf16 and 23.7 at 128, these 4.3 at 41 and 7.0 at 71
(Zen 5, one thread, 2026-11-28). Where there is no compiler the products do the work.

Shapes: R rows (one a sequence), S slots, H heads, L positions there is memory for, D head width.
"""

import ctypes
import functools
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("decode_attention.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
_ELEMENTS = {torch.bfloat16: "uint16_t", torch.float32: "float"}
_LANES = 16
_COMPILE_SECONDS = 60
_NO_BAND = 1 << 62

NativeAttention = Callable[[Tensor, Tensor, Tensor, Tensor, int | None], Tensor]
"""(qkv_R3HD, keys_RHLD, values_RHLD, positions_R, band) -> mixed_RHD; all contiguous, on the CPU. Stores the rows' keys
and values at their positions and attends to those up to there, no more than ``band`` of them."""


@functools.cache
def native_attention(dtype: torch.dtype, head_width: int) -> NativeAttention | None:
    """Return attention for such a cache, None where it cannot be compiled here or its results are wrong."""
    if dtype not in _ELEMENTS or head_width % _LANES:
        return None
    try:
        attend = _compiled(dtype, head_width)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("generation: attention is slower than it could be, its C++ was not compiled: %s", error)
        return None

    def attention(
        qkv_R3HD: Tensor, keys_RHLD: Tensor, values_RHLD: Tensor, positions_R: Tensor, band: int | None
    ) -> Tensor:
        num_rows, _, num_heads, _ = qkv_R3HD.shape
        mixed_RHD = qkv_R3HD.new_empty(num_rows, num_heads, head_width)

        def attend_rows(rows: slice) -> None:
            tensors = (qkv_R3HD, keys_RHLD, values_RHLD, mixed_RHD, positions_R)
            addresses = [tensor[rows].data_ptr() for tensor in tensors]
            attend(*addresses, len(mixed_RHD[rows]), num_heads, keys_RHLD.shape[2], band or _NO_BAND)

        _for_all(num_rows, attend_rows)
        return mixed_RHD

    return attention if _is_right(attention, dtype, head_width) else None


def _compiled(dtype: torch.dtype, head_width: int) -> Callable[..., None]:
    """Compile the source for this machine and load it.

    Raises:
        OSError, subprocess.SubprocessError: There is no compiler, or it fails.
    """
    command = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"no C++ compiler {command[0]!r}; install g++, or set CXX")
    sizes = (f"-DELEMENT={_ELEMENTS[dtype]}", f"-DHEAD_WIDTH={head_width}")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "attention.so")
        words = [*command, *_FLAGS, *sizes, str(_SOURCE), "-o", str(library)]
        subprocess.run(words, check=True, capture_output=True, timeout=_COMPILE_SECONDS)  # noqa: S603 - no shell
        attend = ctypes.CDLL(str(library)).attend
    attend.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 4
    attend.restype = None
    return attend


def _for_all(num_rows: int, attend_rows: Callable[[slice], None]) -> None:
    """Call for all rows, in as many parts as torch has threads; ctypes lets other threads run meanwhile."""
    num_parts = min(torch.get_num_threads(), num_rows)
    if num_parts == 1:
        attend_rows(slice(num_rows))
        return
    bounds = [num_rows * part // num_parts for part in range(num_parts + 1)]
    list(_threads(num_parts).map(attend_rows, map(slice, bounds[:-1], bounds[1:])))


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "attention")


def _is_right(attention: NativeAttention, dtype: torch.dtype, head_width: int) -> bool:
    """Compare with attention in fp64, so that a compiler's mistake costs speed and no more."""
    generator = torch.Generator().manual_seed(0)
    positions_R, num_heads, num_keys, band = torch.tensor([0, 5, 16, 40]), 2, 64, 9
    size = (len(positions_R), num_heads, num_keys, head_width)
    qkv_R3HD = torch.randn(size[0], 3, num_heads, head_width, generator=generator).to(dtype)
    keys_RHLD, values_RHLD = (torch.randn(size, generator=generator).to(dtype) for _ in range(2))
    found_RHD = attention(qkv_R3HD, keys_RHLD, values_RHLD, positions_R, band)
    distance_RL = positions_R[:, None] - torch.arange(num_keys)
    is_seen_R1L = ((distance_RL >= 0) & (distance_RL < band))[:, None]
    scores_RHL = torch.einsum("rhd,rhld->rhl", qkv_R3HD[:, 0].double(), keys_RHLD.double()) / head_width**0.5
    weights_RHL = scores_RHL.masked_fill(~is_seen_R1L, -torch.inf).softmax(-1)
    expected_RHD = torch.einsum("rhl,rhld->rhd", weights_RHL, values_RHLD.double())
    return torch.allclose(found_RHD.double(), expected_RHD, rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)
