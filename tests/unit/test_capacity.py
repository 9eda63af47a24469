"""Promises of cluster.capacity, of how it is asked, and of train.num_workers as a range."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from cluster import fitting
from cluster.capacity import Worker
from cluster.fitting import Fitting
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


@pytest.mark.parametrize(
    ("given", "batch", "message"),
    [
        (6, {"batch_sequences": 4}, "num_workers 6 is no power of two, .*; take 2 or 4"),
        (8, {"batch_sequences": 4}, "num_workers 8 does not divide the 4 micro-batches of a step; take 2 or 4"),
        ([4, 8], {"batch_sequences": 2}, "num_workers 4 to 8 is no power of two, .*; take 1 or 2"),
        (4, {"batch_sequences": 8, "ramp_start_sequences": 2, "ramp_tokens": 99}, "divide the 2 micro-.*take 1 or 2"),
    ],
)
def test_a_refusal_offers_only_numbers_of_workers_that_work(given, batch, message):
    with pytest.raises(ValidationError, match=message) as caught:
        TrainSettings(num_workers=given, micro_batch_sequences=1, **batch)
    offered = str(caught.value).partition("take ")[2].split("[")[0].split(" or ")
    for number in map(int, offered):
        TrainSettings(num_workers=number, micro_batch_sequences=1, **batch)


def test_nodes_too_busy_to_answer_in_three_seconds_are_asked_for_longer(monkeypatch):
    asked = []

    def num_fitting(worker, probe_seconds):
        asked.append(probe_seconds)
        return 2 if probe_seconds is None or probe_seconds > 10 else 0

    monkeypatch.setattr(fitting, "num_fitting", num_fitting)
    monkeypatch.setattr(fitting.time, "sleep", lambda seconds: None)
    plan: Any = SimpleNamespace(num_threads=1, device="cpu", output="")
    job = Fitting("pretrain", plan, lambda config: None, [1, 2], 3, lambda: False)
    assert job._count_now(hoped=2) == 2
    assert asked == [3, 6, 12]
    assert job._count_now(hoped=0) == 2
    assert asked[-1] is None
