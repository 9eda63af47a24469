"""`herd tokenize` as a user starts it, ways to hurt it, and a count of every shard that is begun."""

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

from gpt_core import manifest
from gpt_core.ledger import FOLDER
from gpt_core.verify import verify
from tests.corpus_text import write_sources

ROOT = Path(__file__).resolve().parents[2]
NUM_ACTORS = 2
PATIENCE_SECONDS = 180
_COUNTS = "HERD_TEST_COUNTS"
# Python runs a module of this name in every process, Ray's workers included.
_COUNTING = f"""
import importlib.util, os, sys

class Counting:
    def find_spec(self, name, path=None, target=None):
        if name != "gpt_core.tokenize_shard":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (plain(module), count(module.ShardTokenizer))
        return spec

def count(worker):
    plain = worker.__call__
    file = os.open(os.path.join(os.environ[{_COUNTS!r}], str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def call(self, plan):
        os.write(file, b"x")
        return plain(self, plan)
    worker.__call__ = call

sys.meta_path.insert(0, Counting())
"""


def write_job(folder: Path, words_per_document: int = 6000) -> Path:
    """Write sources, the counting module and a settings file into the folder; return the settings file."""
    (folder / "sitecustomize.py").write_text(_COUNTING)
    settings = {
        "sources": write_sources(folder / "text", words_per_document),
        "shard_bytes": 100_000,
        "validation_fraction": 0.1,
        "tokenizer": {"backend": "tiktoken"},
        "pool": {"min_actors": NUM_ACTORS, "max_actors": NUM_ACTORS},
        "tracking": {"enabled": False},
    }
    path = folder / "tokenize.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def digest_of(output: Path) -> str:
    """Return the root digest of a corpus that is whole and has nothing beside it."""
    assert verify(str(output)) == []
    assert [path for path in output.rglob("*") if path.suffix == ".tmp" or path.name == FOLDER] == []
    return manifest.read(str(output)).root_digest


def num_begun(output: Path) -> int:
    """Return how many times a worker was given a shard of the output, in all runs."""
    return sum(path.stat().st_size for path in counts_of(output).iterdir())


def counts_of(output: Path) -> Path:
    """Return where the workers of an output count."""
    return output.with_name(f"{output.name}-counts")


class Command:
    """One `python -m jobs.tokenize_corpus`, and the processes below it."""

    def __init__(self, config: Path, output: Path, *words: str, **environment: str) -> None:
        self.output, self._log = output, output.with_name(f"{output.name}-log")
        counts_of(output).mkdir(exist_ok=True, parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        added = {"PYTHONPATH": f"{config.parent}{os.pathsep}{ROOT}", _COUNTS: str(counts_of(output))}
        place = words or ("--cluster.num_cpus", "4")
        with self._log.open("ab") as file:
            self._process = psutil.Popen(
                [sys.executable, "-m", "jobs.tokenize_corpus", "--config", str(config), f"--output={output}", *place],
                cwd=config.parent, env=kept | added | environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """What this command and those before it have printed."""
        return self._log.read_text()

    @property
    def num_shards(self) -> int:
        """Shards that are there."""
        return len(list(self.output.glob("train/0*.arrow")))

    def wait(self) -> int:
        """Return its exit code."""
        return self._process.wait(PATIENCE_SECONDS)

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Return once it is true, or when the command has ended."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not true() and self._process.poll() is None:
            assert time.monotonic() < give_up, self.said
            time.sleep(0.001)

    def kill_an_actor(self, rng: random.Random) -> None:
        """SIGKILL one of the tokenizing actors."""
        actors = [process for process in self._below() if "MapWorker" in _command_line(process)]
        if actors:
            rng.choice(actors).kill()

    def end(self) -> None:
        """SIGKILL the driver and all that runs below it, as a power cut does."""
        below = self._below()
        for process in (self._process, *below):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([self._process, *below], timeout=30)

    def _below(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.children(recursive=True)
        return []


def _command_line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
