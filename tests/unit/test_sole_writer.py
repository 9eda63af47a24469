"""Promises of gpt_core.sole_writer."""

import multiprocessing
import os
import signal
import time

import pytest

from gpt_core.errors import ResourceError
from gpt_core.sole_writer import sole_writer

_CONTEXT = multiprocessing.get_context("forkserver")


def _hold(folder, held, seconds):
    with sole_writer(folder, ".lock", 0.0):
        held.set()
        time.sleep(seconds)


@pytest.fixture
def holder(tmp_path):
    held = _CONTEXT.Event()
    process = _CONTEXT.Process(target=_hold, args=(tmp_path, held, 30))
    process.start()
    assert held.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_and_told_who_is_at_work(tmp_path, holder):
    match = f"found process {holder.pid} on .* at work in it; expected one job at a time"
    with pytest.raises(ResourceError, match=match), sole_writer(tmp_path, ".lock", 0.3):
        pass


def test_a_successor_waits_until_a_killed_holder_is_gone(tmp_path, holder):
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    with sole_writer(tmp_path, ".lock", 10):
        pass


def test_the_lock_is_free_after_the_body_and_after_its_error(tmp_path):
    with pytest.raises(KeyError), sole_writer(tmp_path, ".lock", 0):
        raise KeyError
    with sole_writer(tmp_path, ".lock", 0):
        pass
    with sole_writer(tmp_path, ".lock", 0):
        pass
