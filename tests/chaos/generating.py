"""`herd generate` as a user starts it, ways to hurt it, and a count of every token that is drawn."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
NUM_PROMPTS, TOKENS_PER_PROMPT = 160, 40
PATIENCE_SECONDS = 180
_COUNTS = "HERD_TEST_COUNTS"
# Python runs a module of this name in every process, Ray's workers included.
_COUNTING = f"""
import importlib.util, os, sys

class Counting:
    def find_spec(self, name, path=None, target=None):
        if name != "gpt_core.engine":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (plain(module), count(module.Engine))
        return spec

def count(engine):
    plain = engine.step
    file = os.open(os.path.join(os.environ[{_COUNTS!r}], str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def step(self):
        events = plain(self)
        os.write(file, b"x" * sum(event.token_id is not None for event in events))
        return events
    engine.step = step

sys.meta_path.insert(0, Counting())
"""


def write_job(folder: Path, model: Path) -> Path:
    """Write prompts, the counting module and a settings file into the folder; return the settings file."""
    (folder / "prompts.txt").write_text("".join(f"prompt number {i}\n" for i in range(NUM_PROMPTS)))
    (folder / "sitecustomize.py").write_text(_COUNTING)
    (folder / "counts").mkdir()
    settings = {
        "checkpoint": str(model),
        "prompts": [str(folder / "prompts.txt")],
        # What is in flight when something dies is computed again: two prompts of 160.
        "prompts_per_shard": 1,
        "sampling": {"max_tokens": TOKENS_PER_PROMPT, "seed": 7},
        "engine": {"num_slots": 4, "precision": "fp32", "device": "cpu"},
        "pool": {"cpus_per_actor": 0.1, "max_actors": 2},
        "cluster": {"num_cpus": 4},
        "tracking": {"enabled": False},
    }
    path = folder / "generate.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def num_tokens_drawn(folder: Path) -> int:
    """Return the tokens that engines of any process drew for the folder's job."""
    return sum(path.stat().st_size for path in (folder / "counts").iterdir())


def files_of(output: Path) -> dict[str, bytes]:
    """Return the bytes of everything in a dataset's folder but the lock and the records of the runs that made it."""
    names = {str(path.relative_to(output)): path for path in output.rglob("*") if path.is_file()}
    return {name: names[name].read_bytes() for name in names if name != ".job" and not name.startswith("tracking/")}


class Command:
    """One `python -m jobs.generate` into the folder's output, and the processes below it."""

    def __init__(self, folder: Path) -> None:
        self.output, self._log = folder / "out", folder / "log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        added = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", _COUNTS: str(folder / "counts")}
        with self._log.open("ab") as file:
            self._process = psutil.Popen(
                [sys.executable, "-m", "jobs.generate", "--config", "generate.yaml", "--output", str(self.output)],
                cwd=folder, env=kept | added, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """What this command and those before it have printed."""
        return self._log.read_text()

    def wait(self) -> int:
        """Return its exit code."""
        return self._process.wait(PATIENCE_SECONDS)

    def wait_for_shards(self, count: int) -> None:
        """Return once this many shards are there, or when the command has ended."""
        self._wait_until(lambda: len(list(self.output.glob("rows/*.jsonl"))) >= count)

    def kill(self) -> None:
        """SIGKILL the driver, then what it left."""
        below = self._below()
        self._process.kill()
        self._process.wait()
        _end_all(below)

    def kill_one_below(self, rng: random.Random, word: str) -> bool:
        """SIGKILL one of the processes whose command line holds the word; False if there is none."""
        found = [process for process in self._below() if word in _command_line(process)]
        if found:
            rng.choice(found).kill()
        return bool(found)

    def end_after(self, seconds: float) -> None:
        """Give the command some time to end by itself, then end it."""
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(seconds)
        self.end()

    def end(self) -> None:
        """Leave nothing behind."""
        below = self._below()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.kill()
            self._process.wait()
        _end_all(below)

    def _wait_until(self, true: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not true() and self._process.poll() is None:
            assert time.monotonic() < give_up, self.said
            time.sleep(0.01)

    def _below(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.children(recursive=True)
        return []


def _command_line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def _end_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)
