"""Kill anything, change nothing: after any schedule of kills a corpus is the calm one, bit by bit.

HERD_CHAOS_SCHEDULES=N tries N schedules (3 by default, which have every kind of harm once). Every tenth from the
second on has a Ray of its own in each run, which dies with the driver; the others share one.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt_core.corpus import manifest
from tests.chaos import tokenizing_on_nodes
from tests.chaos.tokenizing import NUM_ACTORS, Command, SharedRay, digest_of, num_begun, shared_ray, write_job
from tests.e2e.private_head import why_not

NUM_SCHEDULES = int(os.environ.get("HERD_CHAOS_SCHEDULES", "3"))
Harm = Callable[[Command, random.Random], bool]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def ray(config: Path) -> Iterator[SharedRay]:
    with shared_ray(config) as shared:
        yield shared


@pytest.fixture(scope="module")
def calm(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("calm") / "out"
    command = Command(config, output)
    try:
        assert command.wait() == 0, command.said
    finally:
        command.end()
    return output


@pytest.fixture(scope="module")
def tell(request: pytest.FixtureRequest) -> Iterator[Callable[[str, str], None]]:
    """Prints a schedule and its digest; at the end the schedules are counted, and their digests, which are one."""
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    made: list[str] = []

    def tell_one(schedule: str, digest: str) -> None:
        made.append(digest)
        with capture.global_and_fixture_disabled():
            print(f"\n{schedule}: {digest}")  # noqa: T201

    yield tell_one
    with capture.global_and_fixture_disabled():
        print(f"\n{len(made)} schedules of kills, {len(set(made))} digest: {', '.join(sorted(set(made)))}")  # noqa: T201


def _kill_an_actor(command: Command, rng: random.Random) -> bool:
    command.kill_an_actor(rng)
    return True  # the command goes on


def _cut_the_power(command: Command, rng: random.Random) -> bool:
    command.end()
    return False


def _cut_the_power_between_a_write_and_its_rename(command: Command, rng: random.Random) -> bool:
    command.wait_until(lambda: any(command.output.glob("train/.*.tmp")))
    command.end()
    return False


def _cut_the_power_while_the_manifest_is_written(command: Command, rng: random.Random) -> bool:
    command.wait_until(lambda: any(command.output.glob("*shards.arrow*")))
    command.end()
    return False


_HARMS: tuple[Harm, ...] = (
    _kill_an_actor,
    _cut_the_power,
    _cut_the_power_between_a_write_and_its_rename,
    _cut_the_power_while_the_manifest_is_written,
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(NUM_SCHEDULES))
def test_after_any_schedule_of_kills_the_corpus_is_the_calm_one(
    number: int,
    ray: SharedRay,
    config: Path,
    calm: Path,
    tell: Callable[[str, str], None],
    tmp_path: Path,
) -> None:
    start = Command if number % 10 == 1 else ray.start
    rng = random.Random(number)
    harms = sorted({_HARMS[number % 4], _HARMS[(number + 1) % 4]}, key=_HARMS.index)
    total = manifest.read(str(calm)).splits["train"].num_shards
    output = tmp_path / "out"
    command = start(config, output)
    try:
        for shards, harm in zip(sorted(rng.sample(range(1, total), len(harms))), harms, strict=True):
            command.wait_until(lambda shards=shards, command=command: command.num_shards >= shards)
            if not harm(command, rng):
                command = start(config, output)
        assert command.wait() == 0, command.said
    finally:
        command.end()
    digest = digest_of(output)
    tell(f"schedule {number}: {', '.join(harm.__name__.strip('_') for harm in harms)}", digest)
    assert digest == digest_of(calm)
    assert num_begun(calm) <= num_begun(output) <= num_begun(calm) + NUM_ACTORS * len(harms)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted; run as root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_full_disk_is_told_in_a_sentence_and_the_rerun_keeps_what_was_done(
    small_disk: Path, config: Path, calm: Path
) -> None:
    output = small_disk / "out"
    command = Command(config, output)
    try:
        assert command.wait() == 2, command.said
        assert "found No space left on device" in command.said
        assert "make room or choose another output, then run the same command again" in command.said
        assert not (output / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        command = Command(config, output)
        assert command.wait() == 0, command.said
    finally:
        command.end()
    assert digest_of(output) == digest_of(calm)
    # What the other actors were writing when the job ended stayed until the rerun.
    assert not list(output.rglob(".0*.tmp"))
    # Until the driver has heard of it, each actor begins what was already given to it, and fails at once.
    assert num_begun(output) <= num_begun(calm) + 4 * NUM_ACTORS


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_crashes_and_one_that_joins_change_no_bit(config: Path, calm: Path, tmp_path: Path) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    output = tmp_path / "out"
    tokenizing_on_nodes.perform(config, output, tmp_path)
    assert digest_of(output) == digest_of(calm)
