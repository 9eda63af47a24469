"""`herd tokenize` as a user starts it, ways to hurt it, and a count of every shard that is begun."""

import contextlib
import multiprocessing
import os
import random
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import psutil
import yaml

from gpt_core.corpus import manifest
from gpt_core.corpus.verify import verify
from gpt_core.ledger import FOLDER
from tests.chaos import command
from tests.chaos.command import ROOT, kill_all
from tests.corpus_text import write_sources

NUM_ACTORS = 2
_ACTOR = "MapWorker"
_COUNT = """
def count(module):
    plain = module.ShardTokenizer.__call__
    def call(self, plan):
        note(self._options.output + "-counts", b"x")
        return plain(self, plan)
    module.ShardTokenizer.__call__ = call
"""


def write_job(folder: Path, words_per_document: int = 6000) -> Path:
    """Write sources, the counting module and a settings file into the folder; return the settings file."""
    command.write_counting(folder, "gpt_core.corpus.tokenize_shard", _COUNT)
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
    return command.num_counted(counts_of(output))


def counts_of(output: Path) -> Path:
    """Return where the workers of an output count."""
    return output.with_name(f"{output.name}-counts")


def log_of(output: Path) -> Path:
    """Return where the commands of an output print."""
    return output.with_name(f"{output.name}-log")


class Command(command.Command):
    """One `python -m jobs.tokenize_corpus`, with a Ray of its own unless the words name a cluster."""

    def __init__(self, config: Path, output: Path, *words: str, **environment: str) -> None:
        self.output = output
        counts_of(output).mkdir(exist_ok=True, parents=True)
        environment = {"PYTHONPATH": f"{config.parent}{os.pathsep}{ROOT}", **environment}
        place = words or ("--cluster.num_cpus", "4")
        started = ["-m", "jobs.tokenize_corpus", "--config", str(config), f"--output={output}", *place]
        super().__init__(started, log_of(output), config.parent, environment)

    @property
    def num_shards(self) -> int:
        """Shards that are there."""
        return len(list(self.output.glob("train/0*.arrow")))

    def kill_an_actor(self, rng: random.Random) -> None:
        """SIGKILL one of the tokenizing actors."""
        self.kill_one_below(rng, _ACTOR)


class SharedRay:
    """A Ray of this process for many commands, so that each saves the start of one.

    What a power cut ends is then a driver and its actors: all that writes.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._drivers = multiprocessing.get_context("forkserver")
        # Read once for all drivers: modules take most of a driver's start.
        self._drivers.set_forkserver_preload(["jobs.cli", "cluster.tokenizing", "cluster.stages", "ray.data"])

    def start(self, config: Path, output: Path) -> "SharedCommand":
        """Start a command whose driver is a fork of a process that has read all modules."""
        return SharedCommand(self._drivers, config, output, self.address)


@contextlib.contextmanager
def shared_ray(config: Path) -> Iterator[SharedRay]:
    """Start a Ray whose workers count what they begin."""
    import ray

    from cluster.session import connect
    from gpt_core.settings import ClusterSettings

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{config.parent}{os.pathsep}{ROOT}"
    try:
        with connect(ClusterSettings(num_cpus=4)):
            yield SharedRay(ray.get_runtime_context().gcs_address)
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class SharedCommand(Command):
    """A command on a shared Ray; the processes below it are its actors too."""

    def __init__(self, drivers: ForkServerContext, config: Path, output: Path, address: str) -> None:
        self.output, self._log = output, log_of(output)
        counts_of(output).mkdir(exist_ok=True, parents=True)
        words = ["tokenize", "--config", str(config), f"--output={output}", "--cluster.address", address]
        self._driver = drivers.Process(target=_drive, args=(words, str(self._log)))
        self._driver.start()
        self._process = psutil.Process(self._driver.pid)

    def wait(self) -> int:
        """Return its exit code."""
        self._driver.join(command.PATIENCE_SECONDS)
        assert self._driver.exitcode is not None, self.said
        return self._driver.exitcode

    def is_running(self) -> bool:
        """Return whether it has not ended."""
        return self._driver.is_alive()

    def end(self) -> None:
        """SIGKILL the driver and all actors."""
        actors = self.below()
        self._driver.kill()
        self._driver.join()
        kill_all(actors)

    def below(self) -> list[psutil.Process]:
        """Return the living actors on the Ray, those of commands that were killed just now among them."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if _ACTOR in " ".join(process.cmdline()):
                    found.append(process)
        return found


def _drive(words: Sequence[str], log: str) -> None:
    from jobs import cli

    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.exit(cli.main(list(words)))
