"""Promises of cluster.serving.replica_scaling."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from cluster.serving.replica_scaling import SAMPLES, SlotScaling, replica_options
from gpt_core.settings import EngineSettings


@pytest.mark.parametrize(("samples", "wanted"), [([], 1), ([0.0], 1), ([16.0], 1), ([17.0], 2), ([30.0, 34.0], 4)])
def test_there_is_a_slot_for_every_sample(samples, wanted):
    reports = {SAMPLES: dict(enumerate(samples))} if samples else None
    context = SimpleNamespace(aggregated_metrics=reports, policy_state={"kept": 1})
    assert SlotScaling(16)(context) == (wanted, {"kept": 1})


def test_replicas_are_fixed_unless_a_maximum_is_given():
    assert replica_options(EngineSettings(num_replicas=2)) == {"num_replicas": 2}
    scaling = replica_options(EngineSettings(num_replicas=2, max_replicas=5))["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)


def test_a_maximum_below_the_minimum_is_refused():
    with pytest.raises(ValidationError, match="max_replicas 1 is below num_replicas 2"):
        EngineSettings(num_replicas=2, max_replicas=1)
