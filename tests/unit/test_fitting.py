"""One start of Ray Train, whose trainer is a stand-in here: when it is asked to stop, and that it is waited for."""

import errno
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from cluster import fitting, interrupts
from cluster.fitting import STOP, Fitting
from cluster.worker_losses import Losses


class _Trainer:
    """Trains until the wish to stop is there and then for a second more, or until its controller is killed."""

    def __init__(self, output: Path) -> None:
        self.run_config = SimpleNamespace(storage_path=str(output / "ray"))
        self.finished = threading.Event()
        self.killed = threading.Event()
        self._stop = output / STOP

    def fit(self) -> None:
        while not self._stop.exists():
            time.sleep(0.01)
        if self.killed.wait(1):
            raise RuntimeError("the controller died")
        self.finished.set()


def _group(monkeypatch: pytest.MonkeyPatch, output: Path, steps: list[bool]) -> tuple[fitting._Group, _Trainer]:
    trainer = _Trainer(output)
    monkeypatch.setattr(fitting, "_trainer", lambda *_: trainer)
    monkeypatch.setattr(fitting, "kill_train_controller", trainer.killed.set)
    monkeypatch.setattr(fitting, "draining_nodes", set)
    monkeypatch.setattr(fitting, "num_fitting", lambda *_, **__: 1)
    monkeypatch.setattr(fitting, "_RESIZE_POLL_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "_POLL_SECONDS", 0.02)
    plan: Any = SimpleNamespace(num_threads=1, device="cpu", output=str(output), folder=output, num_steps=9)
    job = Fitting("pretrain", plan, lambda config: None, [1, 2], 3, lambda: bool(steps and steps.pop()))
    return fitting._Group(job, 1, Losses(output, str(output), 3, 0)), trainer


def test_a_run_whose_time_is_up_ends_with_a_checkpoint_and_is_not_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group, trainer = _group(monkeypatch, tmp_path, [True])
    monkeypatch.setattr(fitting, "newest_step", lambda output: 0)
    assert not fitting._is_over(group._fitting.plan)
    with pytest.raises(interrupts.Stopped, match=r"stopped at step 0 of 9 after 0.1 s .*; the same command goes on"):
        replace(group._fitting, counts=[1], max_seconds=0.1).run()
    assert trainer.finished.is_set()
    assert not trainer.killed.is_set()
    assert "0.1 s are over; a checkpoint is being written" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_a_run_waits_for_its_last_checkpoint(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, trainer = _group(monkeypatch, tmp_path, [True])
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        group.wait()
    assert trainer.finished.is_set()
    assert not trainer.killed.is_set()


def test_who_stops_a_run_before_its_first_step_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, trainer = _group(monkeypatch, tmp_path, [])
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        group.wait()
    assert trainer.killed.is_set()
    assert not trainer.finished.is_set()


def test_who_asks_twice_does_not_wait_for_the_step_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, trainer = _group(monkeypatch, tmp_path, [True])
    for seconds in (0.3, 1.0):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        group.wait()
    assert trainer.killed.is_set()
    assert not trainer.finished.is_set()


def test_a_checkpoint_that_takes_too_long_is_given_up_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group, trainer = _group(monkeypatch, tmp_path, [True])
    monkeypatch.setattr(fitting, "_STOP_SECONDS", 0.1)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        group.wait()
    assert trainer.killed.is_set()
    assert "no checkpoint after 0.1 s; stopping without it" in capsys.readouterr().err


def test_a_full_disk_keeps_no_one_from_stopping_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group, trainer = _group(monkeypatch, tmp_path, [True])
    monkeypatch.setattr(fitting, "num_fitting", lambda *_, **__: 0)
    monkeypatch.setattr(Path, "touch", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        group.wait()
    assert trainer.killed.is_set()
    assert "stopping without a last checkpoint: [Errno 28] No space left on device" in capsys.readouterr().err


def test_a_signal_while_a_group_is_started_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, trainer = _group(monkeypatch, tmp_path, [])
    start = group._thread.start

    def interrupted_start() -> None:
        start()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    monkeypatch.setattr(group._thread, "start", interrupted_start)
    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        group.wait()
    assert trainer.killed.is_set()


def test_a_group_grows_only_once_it_has_stepped_for_its_own_cpus_look_free_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[bool] = []
    group, _ = _group(monkeypatch, tmp_path, steps)
    started = time.monotonic()
    threading.Timer(0.5, steps.append, (True,)).start()
    assert group.wait() is None
    assert group.hoped == 2
    assert time.monotonic() - started > 1.5
