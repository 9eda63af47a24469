"""C++ of the folder ``native``, compiled for this machine when an engine first needs it; a third of a second a file.

Nothing is kept on disk: what was compiled for another CPU is never run here. Where there is no compiler the caller has
another way, in PyTorch.
"""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_FOLDER = Path(__file__).with_name("native")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
_COMPILE_SECONDS = 60
LANES = 16
"""Widths must be multiples of this."""
CompileError = (OSError, subprocess.SubprocessError)


def compiled(source: str, **names: str | int) -> ctypes.CDLL:
    """Compile a file of the folder, with the names defined, and load it.

    Raises:
        OSError, subprocess.SubprocessError: There is no compiler, or it fails; caught as CompileError.
    """
    command = _compiler()
    defines = [f"-D{name}={value}" for name, value in names.items()]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # NFS keeps what is loaded
        library = Path(folder, "native.so")
        words = [*command, *_FLAGS, *defines, str(_FOLDER / source), "-o", str(library)]
        done = subprocess.run(  # noqa: S603 - no shell
            words, check=False, capture_output=True, text=True, errors="replace", timeout=_COMPILE_SECONDS
        )
        if done.returncode:
            first_line = done.stderr.strip().partition("\n")[0]
            raise OSError(f"{shlex.join(command)} ended with {done.returncode}: {first_line}")
        return ctypes.CDLL(str(library))


def _compiler() -> list[str]:
    """Return the words of $CXX, or c++ where it is unset or empty."""
    given = os.environ.get("CXX", "").strip() or "c++"
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise OSError(f"CXX is {given!r}: {error}; set it to a compiler") from error
    if shutil.which(words[0]) is None:
        raise FileNotFoundError(f"no C++ compiler {words[0]!r}; install g++, or set CXX")
    return words


def in_parts(count: int, do: Callable[[slice], object]) -> None:
    """Call for all of ``count``, in as many parts as torch has threads; others run while ctypes is in a call."""
    num_parts = min(torch.get_num_threads(), count)
    if num_parts <= 1:
        do(slice(0, count))
        return
    bounds = [count * part // num_parts for part in range(num_parts + 1)]
    list(_threads(num_parts).map(do, map(slice, bounds[:-1], bounds[1:])))


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "native")
