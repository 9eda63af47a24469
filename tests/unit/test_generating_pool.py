"""How many actors feed the engines of `herd generate`."""

import pytest

from cluster.generating import pool_of
from gpt_core.settings import GenerateSettings, PoolSettings

PATHS = {"checkpoint": "model", "prompts": ("prompts.txt",), "output": "out"}


@pytest.mark.parametrize(
    ("num_slots", "prompts_per_shard", "max_actors"), [(64, 128, 2), (512, 128, 8), (512, 100, 11), (4, 1000, 2)]
)
def test_shards_in_flight_hold_prompts_for_all_slots_twice(
    num_slots: int, prompts_per_shard: int, max_actors: int
) -> None:
    settings = GenerateSettings(**PATHS, prompts_per_shard=prompts_per_shard)
    assert pool_of(settings, num_slots).max_actors == max_actors


def test_a_number_of_actors_that_is_given_is_kept() -> None:
    settings = GenerateSettings(**PATHS, pool=PoolSettings(max_actors=1))
    assert pool_of(settings, 4096) == settings.pool


def test_the_most_actors_are_never_fewer_than_the_least() -> None:
    settings = GenerateSettings(**PATHS, pool=PoolSettings(min_actors=5))
    assert pool_of(settings, 64).max_actors == 5
