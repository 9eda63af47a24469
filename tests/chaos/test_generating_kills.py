"""Kill anything, lose and repeat nothing: after any schedule of kills a dataset has the calm one's bytes.

HERD_CHAOS_SCHEDULES=N tries N schedules (3 by default, which have every kind of harm).
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt_core.model.precision import can_compute_bf16
from tests.chaos import holding_the_lock, settling_precision
from tests.chaos.generating import (
    NUM_PROMPTS,
    TOKENS_PER_PROMPT,
    Command,
    files_of,
    num_tokens_drawn,
    write_job,
)
from tests.chaos.namespaces import needs_namespaces
from tests.tiny_checkpoint import write_tiny_checkpoint

NUM_SCHEDULES = int(os.environ.get("HERD_CHAOS_SCHEDULES", "3"))
Harm = Callable[[Command, random.Random], bool]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def calm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """The files of an undisturbed job, and the tokens it drew."""
    folder = tmp_path_factory.mktemp("calm")
    write_job(folder, model)
    command = Command(folder)
    try:
        assert command.wait() == 0, command.said
    finally:
        command.end()
    return files_of(command.output), num_tokens_drawn(folder)


def _kill_a_replica(command: Command, rng: random.Random) -> bool:
    assert command.kill_one_below(rng, "ServeReplica:herd-generate"), command.said
    return True  # the command goes on


def _kill_an_actor(command: Command, rng: random.Random) -> bool:
    assert command.kill_one_below(rng, "ShardActor"), command.said
    return True


def _kill_the_driver(command: Command, rng: random.Random) -> bool:
    command.end()
    return False


def _kill_the_raylet(command: Command, rng: random.Random) -> bool:
    assert command.kill_one_below(rng, "raylet/raylet"), command.said
    command.end_after(seconds=20)  # Ray may take longer to notice; what counts is that a rerun goes on
    return False


_HARMS: tuple[Harm, ...] = (_kill_a_replica, _kill_an_actor, _kill_the_driver, _kill_the_raylet)


def _harms(number: int, rng: random.Random) -> list[Harm]:
    """Return each kind once in the first two schedules, then two of any."""
    return [_HARMS[number * 2], _HARMS[number * 2 + 1]] if number < 2 else rng.sample(_HARMS, 2)


def test_the_calm_job_draws_each_token_once(calm: tuple[dict[str, bytes], int]) -> None:
    files, num_drawn = calm
    rows = [json.loads(line) for name in sorted(files) if name.startswith("rows/") for line in files[name].splitlines()]
    assert [row["prompt"] for row in rows] == [f"prompt number {i}" for i in range(NUM_PROMPTS)]
    assert sum(len(row["token_ids"]) for row in rows) == num_drawn
    assert num_drawn > 0.5 * NUM_PROMPTS * TOKENS_PER_PROMPT


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(NUM_SCHEDULES))
def test_a_job_that_is_hurt_ends_with_the_bytes_of_a_calm_one(
    number: int, model: Path, calm: tuple[dict[str, bytes], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(number)
    write_job(tmp_path, model)
    harms = _harms(number, rng)
    command = Command(tmp_path)
    try:
        for harm, shards in zip(harms, sorted(rng.sample(range(5, NUM_PROMPTS - 20), 2)), strict=True):
            command.wait_for_shards(shards)
            if not harm(command, rng):
                command = Command(tmp_path)
        assert command.wait() == 0, command.said
    finally:
        command.end()
    files, num_drawn = calm
    assert files_of(command.output) == files
    share = num_tokens_drawn(tmp_path) / num_drawn
    with capsys.disabled():
        print(f"\nschedule {number}: {', '.join(harm.__name__.strip('_') for harm in harms)}: {share:.3f} of one pass")  # noqa: T201
    assert share <= 1.05


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_namespaces
def test_a_node_that_dies_before_it_tells_its_precision_is_left_for_another(tmp_path: Path) -> None:
    expected = "bf16" if can_compute_bf16(torch.device("cpu")) else "fp32"
    assert settling_precision.perform(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.timeout(120)
@needs_namespaces
def test_the_lock_on_ray_serve_dies_with_no_node_but_the_drivers_own(tmp_path: Path) -> None:
    assert all(holding_the_lock.perform(tmp_path))
