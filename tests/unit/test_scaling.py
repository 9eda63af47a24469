"""Waiting for nodes: in short waits, between which a signal is handled, aloud, and not for ever."""

import importlib
from types import SimpleNamespace

import pytest

from cluster import scaling
from gpt_core.errors import ResourceError
from gpt_core.settings import ClusterSettings


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose placement groups are ready after so many seconds of a clock that only waiting moves."""
    state = SimpleNamespace(now=0.0, ready_at=0.0, waits=[], removed=0)

    class Group:
        def wait(self, timeout_seconds):
            state.waits.append(timeout_seconds)
            state.now += min(timeout_seconds, max(0.0, state.ready_at - state.now))
            return state.now >= state.ready_at

    def remove(_group):
        state.removed += 1

    groups = importlib.import_module("ray.util.placement_group")  # ray.util has a function of the same name
    monkeypatch.setattr(groups, "placement_group", lambda *_, **__: Group())
    monkeypatch.setattr(groups, "remove_placement_group", remove)
    monkeypatch.setattr(scaling, "time", SimpleNamespace(monotonic=lambda: state.now))
    return state


def test_it_returns_once_the_nodes_are_there_and_says_now_and_then_that_it_waits(cluster, capsys):
    cluster.ready_at = 40.0
    scaling.wait_for_nodes(ClusterSettings(min_cpus=3))
    assert cluster.now == 40.0
    assert cluster.removed == 1
    assert max(cluster.waits) <= 1  # no signal is handled within one
    assert capsys.readouterr().err.splitlines() == [
        "waiting for 3 CPUs and 0 GPUs (2 s)",
        "waiting for 3 CPUs and 0 GPUs (32 s)",
    ]


def test_it_gives_up_after_half_an_hour(cluster):
    cluster.ready_at = float("inf")
    with pytest.raises(ResourceError, match="less than 0 CPUs and 2 GPUs free after 1800 s"):
        scaling.wait_for_nodes(ClusterSettings(min_gpus=2))
    assert cluster.now == 1800.0
    assert cluster.removed == 1


def test_who_wants_no_number_of_nodes_does_not_wait(cluster):
    scaling.wait_for_nodes(ClusterSettings())
    assert cluster.waits == []
