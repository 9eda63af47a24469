"""Promises of cluster.capacity and of train.num_workers as a range."""

import pytest
from pydantic import ValidationError

from cluster.capacity import Worker
from gpt_core.settings import TrainSettings


def test_a_room_holds_as_many_workers_as_its_scarcest_resource():
    assert Worker(2, 0).fits({"CPU": 7.0, "memory": 1e9}) == 3
    assert Worker(2, 1).fits({"CPU": 7.0, "GPU": 1.0}) == 1
    assert Worker(2, 1).fits({"CPU": 7.0}) == 0


@pytest.mark.parametrize(("given", "fewest", "most"), [(4, 4, 4), ([4], 4, 4), ([1, 8], 1, 8), ((3, 6), 3, 6)])
def test_workers_are_a_number_or_a_range(given, fewest, most):
    train = TrainSettings(num_workers=given)
    assert (train.fewest_workers, train.most_workers) == (fewest, most)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "num_workers 3 is no power of two, which exact reduction needs; take 2 or 4"),
        ([5, 7], "num_workers 5 to 7 is no power of two, which exact reduction needs; take 4 or 8"),
        ([4, 2], "has its largest number first"),
        (256, "num_workers 256 does not divide the 128 micro-batches of a step"),
    ],
)
def test_workers_that_never_work_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        TrainSettings(num_workers=given)
