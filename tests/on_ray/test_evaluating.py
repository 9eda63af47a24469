"""`herd evaluate --tasks` on Ray: the same scores from any number of workers, and after a stop."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import evaluating
from cluster.session import Cluster
from cluster.shard_job import run_shard_job
from cluster.tracking import TrackingOptions, open_run
from gpt_core.errors import CorpusError, StaleOutputError
from gpt_core.settings import EvaluateSettings, PoolSettings, TaskSettings
from tests.tiny_checkpoint import write_tiny_checkpoint

WORDS = ["herd", "graze", "over", "the", "hill", "and", "river", "slowly", "at", "dawn"]


def evaluate(settings: EvaluateSettings, cluster: Cluster) -> evaluating.Evaluated:
    options = TrackingOptions(enabled=False, system_seconds=None)
    with open_run(options, name="test", kind="evaluate", output=Path(settings.output)) as run:
        return evaluating.perform(settings, evaluating.resolve(settings), cluster, run)


def files_of(output: Path) -> dict[str, bytes]:
    paths = [output / "evaluation.json", output / "rejects.jsonl", *output.glob("items/*/*.jsonl")]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def test_scores_do_not_depend_on_workers_or_on_a_stop(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"ctx": " ".join(WORDS[i % 7 :]), "endings": WORDS[:4], "label": i % 4} for i in range(30)]
    lines = [*map(json.dumps, rows), '{"ctx": 1}']
    (tmp_path / "choices.jsonl").write_text("\n".join(lines))
    (tmp_path / "text.txt").write_text(" ".join(WORDS) * 40)
    given: dict[str, Any] = {
        "checkpoint": str(write_tiny_checkpoint(tmp_path / "model")),
        "tasks": (
            TaskSettings(kind="hellaswag", path=str(tmp_path / "choices.jsonl")),
            TaskSettings(kind="text", path=str(tmp_path / "text.txt"), stride_tokens=50),
        ),
        "windows_per_shard": 6,
    }
    alone = EvaluateSettings(**given, output=str(tmp_path / "alone"), pool=PoolSettings(max_actors=1))
    found = evaluate(alone, cluster)
    assert found.tasks[0].metrics["num_items"] == 30
    assert found.tasks[1].metrics["num_bytes"] == len((tmp_path / "text.txt").read_bytes())
    assert found.num_rejects == 1
    assert evaluating.finished(alone, evaluating.resolve(alone)) == found

    stopped = EvaluateSettings(**given, output=str(tmp_path / "stopped"), pool=PoolSettings(max_actors=3))
    with monkeypatch.context() as patched:

        def stop(job: Any, cluster: Cluster) -> None:
            first = evaluating.ShardJob(job.title, job.folder, job.settings, job.plans[:3], job.make_worker, job.pool)
            run_shard_job(first, cluster)
            raise KeyboardInterrupt

        patched.setattr(evaluating, "run_shard_job", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(stopped, cluster)
    done = {path: path.stat().st_mtime_ns for path in Path(stopped.output).glob("items/*/*.jsonl")}
    assert len(done) == 3
    evaluate(stopped, cluster)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "alone")
    assert {path: path.stat().st_mtime_ns for path in done} == done

    other = stopped.model_copy(update={"context_tokens": 64})
    with pytest.raises(StaleOutputError, match="context_tokens: found a result for 128; expected 64"):
        evaluating.finished(other, evaluating.resolve(other))


def test_a_task_whose_rows_are_all_too_long_is_no_success(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text('{"text": "a %s"}\n{"nothing": 1}' % ("b" * 200))
    settings = EvaluateSettings(
        checkpoint=str(write_tiny_checkpoint(tmp_path / "model")),
        tasks=(TaskSettings(kind="lambada", path=str(tmp_path / "long.jsonl")),),
        output=str(tmp_path / "scores"),
        pool=PoolSettings(max_actors=1),
    )
    with pytest.raises(CorpusError, match=r"nothing to score \(2 rows set aside"):
        evaluate(settings, cluster)
    assert not (tmp_path / "scores" / "evaluation.json").exists()
    assert len((tmp_path / "scores" / "rejects.jsonl").read_text().splitlines()) == 2
