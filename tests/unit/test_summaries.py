"""The summaries that jobs end with."""

from pathlib import Path

import pytest

from cluster import stages
from cluster.evaluating import Evaluated
from cluster.finetuning import Finetuned
from cluster.generating import Generated
from cluster.tokenizing import Tokenized
from cluster.training import Trained
from gpt_core.settings import EvaluateJob, FinetuneJob, GenerateJob, PretrainJob, TokenizeJob, TrackingSettings
from jobs import evaluate, finetune, generate, pretrain, tokenize_corpus

TRAINED = Trained(Path("run/checkpoints/step-00000009"), "ab12", 1234567, 9, 4096, 10.98, 4.0, None)


@pytest.mark.parametrize(("validation_loss", "told"), [(None, "nothing held out"), (4.25, "4.25 held out")])
def test_pretraining_ends_with_its_losses_also_where_nothing_was_held_out(monkeypatch, validation_loss, told):
    trained = Trained(Path("run/checkpoints/step-00000009"), "ab12", 1234567, 9, 4096, 10.98, 4.0, validation_loss)
    monkeypatch.setattr(stages, "run_alone", lambda *_: trained)
    job = PretrainJob(corpus="corpus", output="run", tracking=TrackingSettings(enabled=False))
    assert pretrain.main(job) == (
        "run/checkpoints/step-00000009: 1,234,567 parameters, 9 steps, "
        f"loss 10.98 expected untrained, {told}\nweights digest ab12"
    )


@pytest.mark.parametrize(
    ("main", "job", "result"),
    [
        (tokenize_corpus.main, TokenizeJob(input=("text",), output="runs/x/a"), Tokenized("ab12", 1, 2, 3, 0)),
        (pretrain.main, PretrainJob(corpus="corpus", output="runs/x/a"), TRAINED),
        (
            finetune.main,
            FinetuneJob(checkpoint="c", task="plain", examples=("e.jsonl",), output="runs/x/a"),
            Finetuned(Path("step"), "ab12", 1, 2, 3, 4.0, None, 5, 0),
        ),
        (evaluate.main, EvaluateJob(checkpoint="c", corpus="corpus", output="runs/x/a"), Evaluated(None)),
        (
            generate.main,
            GenerateJob(checkpoint="c", prompts=("p.txt",), output="runs/x/a"),
            Generated(1, 2, 0, "ab12", []),
        ),
    ],
)
def test_a_job_ends_with_the_line_that_opens_mlflows_page_on_its_runs(monkeypatch, main, job, result):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(stages, "run_alone", lambda *_: result)
    last = main(job).splitlines()[-1]
    assert last.startswith("follow the runs: ")
    assert last.endswith(f"mlflow ui --backend-store-uri sqlite:///{Path.cwd()}/runs/x/mlflow.db")


def test_one_document_in_one_shard_is_told_as_one(monkeypatch):
    monkeypatch.setattr(stages, "run_alone", lambda *_: Tokenized("ab12", 1, 1, 3, 0))
    job = TokenizeJob(input=("text",), output="runs/x/a")
    assert tokenize_corpus.main(job).startswith(f"{job.output}: 3 tokens of 1 document in 1 shard, 0 set aside\n")
