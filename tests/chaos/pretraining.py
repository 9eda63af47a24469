"""`herd pretrain` as a user starts it, ways to hurt it, and the calm run that it must equal."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import yaml

from cluster import training
from cluster.recording.journal import Journal, read_all
from gpt_core.settings import PretrainJob
from gpt_core.training import checkpoint
from gpt_core.training.loop import train
from gpt_core.training.observer import Silence
from jobs.command_line.loader import load

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 150
CHECKPOINT_EVERY_STEPS = 5
PATIENCE_SECONDS = 180
_SETTINGS = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 64, "num_positions": 32, "dropout": 0.1},
    "recipe": {"learning_rate": 1e-2},
    "train": {
        "num_steps": NUM_STEPS,
        "batch_sequences": 16,
        "micro_batch_sequences": 4,
        "evaluate_every_steps": 20,
        "evaluate_sequences": 8,
        "checkpoint_every_steps": CHECKPOINT_EVERY_STEPS,
        "keep_checkpoints": 3,
    },
    "tracking": {"enabled": False},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What must not depend on what happened on the way."""

    weights_sha256: str
    moments_sha256: str
    logged: tuple[tuple[int, float, float | None], ...]
    """Step, loss and validation loss of every step."""

    @property
    def hash(self) -> str:
        """One SHA-256 over all of it."""
        return hashlib.sha256(repr((self.weights_sha256, self.moments_sha256, self.logged)).encode()).hexdigest()


def outcome_of(output: Path) -> Outcome:
    """Read a finished run; a step that was logged twice must have been logged equal."""
    newest = Path(str(checkpoint.load(output).path))
    weights, moments = (
        hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER)
    )
    logged: dict[int, tuple[int, float, float | None]] = {}
    for record in read_all(output / training.METRICS):
        metrics = record["metrics"]
        row = (record["step"], metrics["loss"], metrics.get("validation_loss"))
        assert logged.setdefault(record["step"], row) == row
    return Outcome(weights, moments, tuple(logged[step] for step in sorted(logged)))


def calm_outcome(words: list[str], output: Path) -> Outcome:
    """Train with the words' settings in this process, without Ray, undisturbed."""
    plan = training.resolve(load(PretrainJob, words, "herd pretrain")).plan
    journal = Journal(output / training.METRICS)

    class _Written(Silence):
        def on_metrics(self, step: int, tokens: int, metrics: dict[str, float]) -> None:
            journal.append_metrics(metrics, step=step, tokens=tokens)

    train(replace(plan, output=str(output)), observer=_Written())
    journal.close()
    return outcome_of(output)


def words_for(folder: Path, corpus: Path, output: Path, *more: str) -> list[str]:
    """Return the arguments of a run into the output folder; the settings file is written beside."""
    config = folder / "pretrain.yaml"
    config.write_text(yaml.safe_dump(_SETTINGS))
    return ["--config", str(config), "--corpus", str(corpus), "--output", str(output), *more]


class Command:
    """One `python -m jobs.pretrain` and the processes below it."""

    def __init__(self, words: list[str], output: Path, log: Path, **environment: str) -> None:
        self.output, self._log = output, log
        self._journal = output / training.METRICS
        self._num_bytes = _num_bytes(self._journal)
        self._told_before = log.stat().st_size if log.exists() else 0
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        with log.open("ab") as file:
            self._process = psutil.Popen(
                [sys.executable, "-m", "jobs.pretrain", *words],
                cwd=ROOT, env=kept | environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_bytes()[self._told_before :].decode()

    def wait(self) -> int:
        """Return its exit code."""
        return self._process.wait(PATIENCE_SECONDS)

    def wait_for_step(self, step: int) -> None:
        """Return once this command has logged a step from this one on or, where it is faster, at its end."""
        self.wait_until(lambda: _num_bytes(self._journal) > self._num_bytes and newest_logged_step(self.output) >= step)

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Return once it is true, or when the command has ended."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not true() and self._process.poll() is None:
            assert time.monotonic() < give_up, self.said
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL the driver alone; its training workers, who could write, must end by themselves."""
        below = self.below()
        workers = [process for process in below if _is_training_worker(process)]
        self._process.kill()
        self._process.wait()
        alive = _alive_after(workers, 60)
        _kill_all(below)
        assert not alive, f"left behind by a killed driver: {alive}"

    def kill_everything(self) -> None:
        """SIGKILL the driver and all that runs below it, as a power cut does."""
        below = self.below()
        _kill_all([self._process, *below])
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.wait()
        assert not _alive_after(below, 30)

    def kill_everything_while(self, true: Callable[[], bool]) -> None:
        """Like ``kill_everything``, at a moment when it is true: the workers stand still until that is sure."""
        while True:
            workers = [process for process in self.below() if _is_training_worker(process)]
            self.wait_until(true)
            assert self._process.poll() is None, f"it ended before there was something to hurt: {self.said}"
            _for_each(workers, psutil.Process.suspend)
            if true():
                self.kill_everything()
                return
            _for_each(workers, psutil.Process.resume)

    def terminate(self) -> int:
        """SIGTERM the driver and its process group, as timeout does, and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        os.killpg(self._process.pid, signal.SIGTERM)
        return self.wait()

    def kill_worker(self, rng: random.Random) -> None:
        """SIGKILL one of the training workers."""
        workers = [process for process in self.below() if _is_training_worker(process)]
        if workers:
            rng.choice(workers).kill()

    def below(self) -> list[psutil.Process]:
        """Return the living processes below the driver."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.children(recursive=True)
        return []

    def end(self) -> None:
        """Leave nothing behind."""
        self.kill_everything()


def _alive_after(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return those still at work after some seconds; one that waits to be reaped is not."""
    give_up = time.monotonic() + seconds
    while (alive := [process for process in processes if _is_at_work(process)]) and time.monotonic() < give_up:
        time.sleep(0.05)
    return alive


def _is_at_work(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _num_bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _is_training_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False


def _kill_all(processes: list[psutil.Process]) -> None:
    _for_each(processes, psutil.Process.kill)


def _for_each(processes: list[psutil.Process], do: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            do(process)


def newest_logged_step(output: Path) -> int:
    """Return the step of the journal's newest whole line, 0 for none; cheap enough to ask all the time."""
    try:
        with (output / training.METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    steps = [int(line.split(b'"step":')[1].split(b",")[0]) for line in lines[-1:] if b'"step":' in line]
    return max(steps, default=0)


def seconds_to_next_step(output: Path, harm: Callable[[], object]) -> float:
    """Do harm to a run and return the seconds until its next step is logged, which may be one done before."""
    journal = output / training.METRICS
    began = time.monotonic()
    harm()
    before = -1
    while (at_rest := _num_bytes(journal)) != before:
        before = at_rest
        time.sleep(0.5)
    while _num_bytes(journal) == at_rest:
        assert time.monotonic() - began < PATIENCE_SECONDS, f"no step in {PATIENCE_SECONDS} s; did the command end?"
        time.sleep(0.01)
    return time.monotonic() - began


def is_writing(output: Path) -> bool:
    """Tell whether a checkpoint is half written."""
    return any((output / checkpoint.CHECKPOINTS).glob("aside-*"))


def flip_a_bit(output: Path, rng: random.Random) -> bool:
    """Flip one bit of one file of the newest checkpoint; False where there is none yet."""
    paths = checkpoint.list_paths(output)
    if not paths:
        return False
    file = rng.choice(sorted(Path(str(paths[-1])).iterdir()))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return True


def steps_apart(rng: random.Random, count: int) -> Iterator[int]:
    """Yield rising steps to hurt a run at, early enough that it is still running."""
    yield from sorted(rng.sample(range(CHECKPOINT_EVERY_STEPS + 2, NUM_STEPS * 2 // 3), count))
