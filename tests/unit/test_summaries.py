"""The summaries that jobs end with."""

from pathlib import Path

import pytest

from cluster import stages
from cluster.training import Trained
from gpt_core.settings import PretrainJob
from jobs import pretrain


@pytest.mark.parametrize(("validation_loss", "told"), [(None, "nothing held out"), (4.25, "4.25 held out")])
def test_pretraining_ends_with_its_losses_also_where_nothing_was_held_out(monkeypatch, validation_loss, told):
    trained = Trained(Path("run/checkpoints/step-00000009"), "ab12", 1234567, 9, 4096, 10.98, 4.0, validation_loss)
    monkeypatch.setattr(stages, "run_alone", lambda *_: trained)
    assert pretrain.main(PretrainJob(corpus="corpus", output="run")) == (
        "run/checkpoints/step-00000009: 1,234,567 parameters, 9 steps, "
        f"loss 10.98 expected untrained, {told}\nweights digest ab12"
    )
