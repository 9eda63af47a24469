"""User names and passwords of addresses reach no record, and no checkpoint."""

import json
from pathlib import Path

import pytest

from cluster import training
from gpt_core.credentials import without_credentials
from gpt_core.model.presets import ModelShape
from gpt_core.settings import PretrainJob
from jobs import cli


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:hunter2@mlflow:5000/a", "http://mlflow:5000/a"),
        ("http://me@mlflow:5000", "http://mlflow:5000"),
        ("postgresql://u:p@ss@host/db", "postgresql://host/db"),
        ("s3://AKIA:ab/cd+e@bucket/x", "s3://bucket/x"),
        ("s3://AKIA:12/34@bucket/x", "s3://bucket/x"),
        ("https://token@host/a and gs://k:s@b/c\nend", "https://host/a and gs://b/c\nend"),
        ("http://host:5000/models/poet@champion", "http://host:5000/models/poet@champion"),
        ("s3://bucket/run@2/x", "s3://bucket/run@2/x"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("models:/poet@champion me@work", "models:/poet@champion me@work"),
    ],
)
def test_addresses_lose_user_names_and_passwords_and_nothing_else(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


@pytest.mark.parametrize("uri", ["http://me:hunter2@mlflow:5000", "postgresql+psycopg2://me:hunter2/@mlflow:5000"])
def test_a_tracking_address_with_a_password_is_refused_with_where_it_belongs(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pretrain", "--corpus", "/c", "--output", "/o", "--tracking.uri", uri]) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        "--tracking.uri: found a user name or a password in front of mlflow:5000; expected an address without; for a "
        "server set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, for a database put the whole address into "
        "MLFLOW_TRACKING_URI instead\n"
    )
    assert "hunter2" not in told


def test_a_checkpoint_does_not_say_where_its_run_was_tracked_or_ran(tmp_path: Path) -> None:
    job = PretrainJob.model_validate({
        "corpus": "/c", "output": str(tmp_path),
        "tracking": {"uri": "http://mlflow.internal:5000"}, "cluster": {"address": "ray://head.internal:10001"},
    })  # fmt: skip
    plan = training.plan_of(job, job.corpus, ModelShape(1, 1, 8, 1024, 257))
    assert "internal" not in json.dumps(plan.settings)
    assert plan.settings["train"]["num_steps"] == job.train.num_steps
