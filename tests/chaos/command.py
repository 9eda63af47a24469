"""A job's command as a user starts it, the processes below it, and a count of the work that any process does for it."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 180
# Python runs a module of this name in every process, Ray's workers included.
_COUNTING = """
import importlib.util, os, sys

class Counting:
    def find_spec(self, name, path=None, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (plain(module), count(module))
        return spec

def note(folder, marks):
    file = os.open(os.path.join(folder, str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, marks)
    os.close(file)

{count}
sys.meta_path.insert(0, Counting())
"""


def write_counting(folder: Path, module: str, count: str) -> None:
    """Make every Python process that has the folder on its path count what it does.

    `count` is the source of ``count(module)``, called when a process has imported the module; it wraps what shall be
    counted, and writes a byte for each with ``note(FOLDER, b"x")``.
    """
    (folder / "sitecustomize.py").write_text(_COUNTING.format(module=module, count=count))


def num_counted(folder: Path) -> int:
    """Return how many bytes all processes wrote into a folder of counts."""
    return sum(path.stat().st_size for path in folder.iterdir())


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what Ray and MLflow would read in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}


class Command:
    """One command of Python's, and the processes below it."""

    def __init__(self, words: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = psutil.Popen(
                [sys.executable, *words], cwd=folder, env={**clean_environment(), **environment},
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """What this command and those before it have printed."""
        return self._log.read_text()

    def wait(self) -> int:
        """Return its exit code."""
        return self._process.wait(PATIENCE_SECONDS)

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Return once it is true, or when the command has ended."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not true() and self.is_running():
            assert time.monotonic() < give_up, self.said
            time.sleep(0.001)

    def is_running(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    def kill_one_below(self, rng: random.Random, word: str) -> bool:
        """SIGKILL one of the processes whose command line holds the word; False if there is none."""
        found = [process for process in self.below() if word in _command_line(process)]
        if found:
            rng.choice(found).kill()
        return bool(found)

    def end(self) -> None:
        """SIGKILL the command and all that runs below it, as a power cut does."""
        below = self.below()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.kill()
            self._process.wait()
        kill_all(below)

    def below(self) -> list[psutil.Process]:
        """Return the living processes below the command's."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.children(recursive=True)
        return []


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL processes, and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def _command_line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
