"""Kill anything, change nothing: after any schedule of kills a training run ends with the calm run's bits.

HERD_CHAOS_SCHEDULES=N tries N schedules (3 by default, which have every kind of harm once).
"""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt_core.training import checkpoint
from tests.chaos import losing_a_node
from tests.chaos.pretraining import (
    Command,
    Outcome,
    calm_outcome,
    flip_a_bit,
    is_writing,
    newest_logged_step,
    outcome_of,
    steps_apart,
    words_for,
)
from tests.e2e.private_head import why_not
from tests.tiny_corpus import write_tiny_corpus

NUM_SCHEDULES = int(os.environ.get("HERD_CHAOS_SCHEDULES", "3"))
Harm = Callable[[Command, random.Random], bool]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def calm(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("calm")
    return calm_outcome(words_for(folder, corpus, folder / "unused"), folder / "run")


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Collect the hash of every schedule and print what they have come to."""
    hashes: list[str] = []
    yield hashes
    terminal: Any = request.config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None and hashes:
        terminal.write_line(f"\n{len(hashes)} schedule(s) of kills, hashes: {', '.join(sorted(set(hashes)))}")


def _kill_a_worker(command: Command, rng: random.Random) -> bool:
    command.kill_worker(rng)
    return True  # the command goes on


def _kill_the_driver(command: Command, rng: random.Random) -> bool:
    command.kill()
    return False


def _cut_the_power_while_a_checkpoint_is_written(command: Command, rng: random.Random) -> bool:
    command.kill_everything_while(lambda: is_writing(command.output))
    return False


def _terminate_the_driver(command: Command, rng: random.Random) -> bool:
    code = command.terminate()
    assert code == 143, command.said
    assert "terminated: herd pretrain stopped; run the same command again to continue" in command.said
    newest = checkpoint.read_description(checkpoint.list_paths(command.output)[-1])
    assert newest.step == newest_logged_step(command.output)  # no step is lost
    return False


def _damage_the_newest_checkpoint(command: Command, rng: random.Random) -> bool:
    command.kill_everything()
    flip_a_bit(command.output, rng)
    return False


_HARMS: tuple[Harm, ...] = (
    _kill_a_worker,
    _terminate_the_driver,
    _kill_the_driver,
    _cut_the_power_while_a_checkpoint_is_written,
    _damage_the_newest_checkpoint,
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(NUM_SCHEDULES))
def test_a_run_that_is_hurt_ends_with_the_bits_of_a_calm_one(
    number: int, corpus: Path, calm: Outcome, tmp_path: Path, tally: list[str]
) -> None:
    rng = random.Random(number)
    output, log = tmp_path / "run", tmp_path / "log"
    harms = [_HARMS[(2 * number + place) % len(_HARMS)] for place in range(2)]

    def start() -> Command:
        workers = ["--cluster.num_cpus", "4", "--train.num_workers", str(rng.choice([1, 2]))]
        return Command(words_for(tmp_path, corpus, output, *workers), output, log)

    command = start()
    try:
        for harm, step in zip(harms, steps_apart(rng, len(harms)), strict=True):
            command.wait_for_step(step)
            if not harm(command, rng):
                command = start()
        assert command.wait() == 0, command.said
    finally:
        command.end()
    if _damage_the_newest_checkpoint in harms:
        assert "passed over a damaged checkpoint" in log.read_text()
    found = outcome_of(output)
    assert found == calm
    tally.append(found.hash)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted; run as root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_is_told_at_once_and_the_run_goes_on_when_there_is_room(
    small_disk: Path, corpus: Path, calm: Outcome, tmp_path: Path
) -> None:
    output, ballast = small_disk / "run", small_disk / "ballast"
    words = words_for(tmp_path, corpus, output, "--cluster.num_cpus", "4", "--train.num_workers", "2")
    command = Command(words, output, tmp_path / "log")
    try:
        command.wait_until(lambda: len(checkpoint.list_paths(output)) > 1)
        _fill(ballast)
        assert command.wait() == 2, command.said
        assert "found No space left on device; expected a" in command.said
        assert "room to write; free space and run it again" in command.said
        ballast.unlink()
        command = Command(words, output, tmp_path / "log")
        assert command.wait() == 0, command.said
    finally:
        command.end()
    assert outcome_of(output) == calm


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_crashes_and_one_that_joins_and_is_drained_change_the_workers_and_no_bit(
    corpus: Path, tmp_path: Path
) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    output = tmp_path / "run"
    words = words_for(tmp_path, corpus, output, *losing_a_node.LONGER)
    said = losing_a_node.perform(words, output, tmp_path).said
    assert said.count("going on with 1 worker instead of 2") == 2
    assert said.count("going on with 2 workers instead of 1") == 1
    assert said.count("a node is leaving; writing a checkpoint and starting again on the others") == 1
    assert said.count("lost workers") == 1
    calm_words = words_for(tmp_path, corpus, tmp_path / "unused", *losing_a_node.LONGER)
    assert outcome_of(output) == calm_outcome(calm_words, tmp_path / "calm")
