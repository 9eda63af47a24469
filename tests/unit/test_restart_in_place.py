"""Promises of cluster.restart_in_place: which lost groups start again, how often, and what the driver hears."""

import json
import pickle

import pytest

from cluster import restart_in_place
from cluster.restart_in_place import GroupLostError, RestartInPlace
from cluster.session import own_error_in
from cluster.worker_losses import LOSSES, Losses
from gpt_core.errors import RunFailedError
from gpt_core.training import checkpoint

KILLED = {1: RuntimeError("connection closed by peer")}


def notes(folder):
    return [json.loads(line) for line in (folder / LOSSES).read_text().splitlines()]


def test_losses_without_a_new_checkpoint_are_survived_as_often_as_allowed(tmp_path):
    callback = RestartInPlace(Losses(tmp_path, str(tmp_path), most=2, step=0), nodes=None)
    for _ in range(2):
        callback.after_exception(None, KILLED)
    with pytest.raises(GroupLostError) as caught:
        callback.after_exception(None, KILLED)
    assert caught.value.worker_failures == KILLED
    assert [(note["failures"], note["step"]) for note in notes(tmp_path)] == [(1, 0), (2, 0)]
    assert notes(tmp_path)[1]["told"] == (
        "lost workers (connection closed by peer); starting again from step 0 (failure 2 of 2 without progress)"
    )


def test_a_new_checkpoint_makes_the_count_begin_again(tmp_path):
    callback = RestartInPlace(Losses(tmp_path, str(tmp_path), most=1, step=0), nodes=None)
    for step in (0, 20, 40):
        if step:
            (tmp_path / checkpoint.CHECKPOINTS / f"step-{step:08d}").mkdir(parents=True)
        callback.after_exception(None, KILLED)
    assert [(note["failures"], note["step"]) for note in notes(tmp_path)] == [(1, 0), (1, 20), (1, 40)]


@pytest.mark.parametrize("error", [RunFailedError("step 3", "a loss of nan", "a number", "look"), TypeError("no")])
def test_what_would_only_come_again_is_raised_at_once_and_found_in_the_driver(tmp_path, error):
    callback = RestartInPlace(Losses(tmp_path, str(tmp_path), most=9, step=0), nodes=None)
    with pytest.raises(GroupLostError) as caught:
        callback.after_exception(None, {0: error, **KILLED})
    assert not (tmp_path / LOSSES).exists()
    travelled = pickle.loads(pickle.dumps(caught.value))
    assert str(travelled.worker_failures[0]) == str(error)
    assert own_error_in(travelled) is (travelled.worker_failures[0] if isinstance(error, RunFailedError) else None)


@pytest.mark.parametrize(("answering", "restarts"), [({"a", "b", "c"}, True), ({"a", "b"}, True), ({"a"}, False)])
def test_an_elastic_group_starts_in_place_only_while_all_its_nodes_answer(tmp_path, monkeypatch, answering, restarts):
    monkeypatch.setattr(restart_in_place, "answering_nodes", lambda: answering)
    callback = RestartInPlace(Losses(tmp_path, str(tmp_path), most=9, step=0), nodes={"a", "b"})
    if restarts:
        callback.after_exception(None, KILLED)
        assert len(notes(tmp_path)) == 1
    else:
        with pytest.raises(GroupLostError):
            callback.after_exception(None, KILLED)
