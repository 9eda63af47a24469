"""How many actors feed the engines of `herd generate`."""

from cluster.generating import pool_of
from gpt_core.settings import EngineSettings, GenerateSettings, PoolSettings


def pool(**given: object) -> PoolSettings:
    return pool_of(GenerateSettings(checkpoint="model", prompts=("prompts.txt",), output="out", **given))


def test_there_are_two_actors_for_each_replica_there_may_be() -> None:
    assert pool().max_actors == 2
    assert pool(engine=EngineSettings(num_replicas=3)).max_actors == 6
    assert pool(engine=EngineSettings(num_replicas=1, max_replicas=4)).max_actors == 8


def test_a_number_of_actors_that_is_given_is_kept() -> None:
    given = PoolSettings(max_actors=1)
    assert pool(pool=given, engine=EngineSettings(num_replicas=3)) == given


def test_the_most_actors_are_never_fewer_than_the_least() -> None:
    assert pool(pool=PoolSettings(min_actors=5)).max_actors == 5
