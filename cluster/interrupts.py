"""Ctrl-C and SIGTERM, raised only where the main thread can bear it.

Python raises KeyboardInterrupt between any two byte codes: inside an import, a destructor or the
few instructions after a library took a lock. There it is swallowed, or the lock stays taken for
good, and the job hangs or goes on as if nobody had pressed a key. The handlers here look at what
the signal interrupted: our own code and the calls that wait are interrupted at once, anything else
is given a few milliseconds to return.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_OUR_FOLDER = str(Path(__file__).resolve().parent.parent) + os.sep
_OUR_PACKAGES = tuple(_OUR_FOLDER + package + os.sep for package in ("jobs", "cluster", "gpt_core"))
# Functions of Python and of Ray that do nothing but wait, by the end of their file's path. Not those of
# Thread.join: up to Python 3.12 a thread whose join is interrupted counts as ended from then on.
_WAITS = {
    ("threading.py", "wait"),
    ("queue.py", "get"),
    ("selectors.py", "select"),
    ("subprocess.py", "_try_wait"),
    ("ray/_private/worker.py", "get_objects"),
    ("ray/_private/worker.py", "wait"),
    ("ray/util/placement_group.py", "_call_placement_group_ready"),
    ("ray/data/_internal/execution/streaming_executor_state.py", "get_output_blocking"),
    ("ray/serve/_private/client.py", "_wait_for_application_running"),
    ("ray/serve/_private/client.py", "_wait_for_deployment_healthy"),
}
_RETRY_SECONDS = 0.02
# A call that neither waits nor returns for so long is interrupted where it is.
_PATIENCE_SECONDS = 5.0
# Who signals a command and its process group, as timeout does, signals it twice.
_ECHO_SECONDS = 0.5


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whoever cleans up after Ctrl-C cleans up after it."""


class Stopped(KeyboardInterrupt):
    """A job ends before its work is done, as its settings say; its text is the reason."""


class _Pending:
    """The signal that waits for its moment, and how many blocks want it to wait."""

    def __init__(self) -> None:
        self.held = 0
        self.since: float | None = None
        self.raised = -math.inf
        self.told_to = 2


_pending = _Pending()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGINT and Terminated for SIGTERM, each at a bearable moment, inside the block.

    Does nothing outside of the main thread, which alone may have handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _pending.raised = -math.inf
    with _stderr_at_hand():
        before = {number: signal.signal(number, _deliver) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _stderr_at_hand() -> Iterator[None]:
    """Keep a copy of standard error: while Ray starts, which may take long, what is written to that goes nowhere."""
    try:
        _pending.told_to = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        yield
    finally:
        os.close(_pending.told_to)
        _pending.told_to = 2


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let no interrupt be raised inside the block, however long it waits: Ray must not be left half started."""
    _pending.held += 1
    try:
        yield
    finally:
        _pending.held -= 1


def _deliver(number: int, frame: FrameType | None) -> None:
    """Raise what the signal stands for, once, or send it again a moment later."""
    now = time.monotonic()
    if now - _pending.raised < _ECHO_SECONDS:
        return
    if _pending.since is None:
        _pending.since = now
    overdue = now - _pending.since > _PATIENCE_SECONDS
    if not _pending.held and (overdue or _is_bearable(frame)):
        _pending.since, _pending.raised = None, now
        sys.unraisablehook = _say_nothing
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
    if _pending.since == now:
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(_pending.told_to, b"stopping as soon as what is under way can be left\n")
    again = threading.Timer(_RETRY_SECONDS, signal.pthread_kill, (threading.main_thread().ident, number))
    again.daemon = True
    again.start()


def _say_nothing(_: object) -> None:
    """Leave out what destructors of libraries meet while an interrupted process takes itself apart."""


def _is_bearable(frame: FrameType | None) -> bool:
    """Tell whether the interrupted call is ours or one that waits, outside of imports and destructors."""
    if frame is None or _would_be_swallowed(frame):
        return False
    code = frame.f_code
    if code.co_filename.startswith(_OUR_PACKAGES):
        return True
    return any(code.co_filename.endswith(file) and code.co_name == name for file, name in _WAITS)


def _would_be_swallowed(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
