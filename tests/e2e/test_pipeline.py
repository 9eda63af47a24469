"""The pipeline of the quickstart, made small: once, again, interrupted in every stage, and with mistakes."""

import importlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.commands import ROOT, herd, herd_interrupted

_PROMPTS = ROOT / "jobs/configs/quickstart_prompts.txt"
_STAGES = ("tokenize", "pretrain", "evaluate", "generate")


def _write_inputs(folder: Path) -> Path:
    """Write the quickstart's settings, made small; return the file."""
    settings = yaml.safe_load((ROOT / "jobs/configs/quickstart.yaml").read_text())
    settings["output"] = "out"
    settings["tokenize"] |= {"shard_bytes": 8000, "validation_fraction": 0.3}
    settings["tokenize"]["sources"][0]["paths"] = ["$STDLIB/json"]
    settings["pretrain"]["model"] |= {"n_layer": 2, "n_head": 2, "n_embd": 32, "num_positions": 32}
    settings["pretrain"]["train"] |= {
        "num_steps": 60, "micro_batch_sequences": 2, "evaluate_every_steps": 20, "checkpoint_every_steps": 20
    }  # fmt: skip
    settings["evaluate"] |= {"max_windows": 64, "windows_per_shard": 16}
    settings["generate"] |= {"prompts": [str(_PROMPTS)], "prompts_per_shard": 2}
    settings["generate"]["sampling"]["max_tokens"] = 12
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _digests(output: Path) -> dict[str, str]:
    """Return what each stage's own manifest says it made."""
    corpus = json.loads((output / "corpus" / "manifest.json").read_text())
    newest = max((output / "model" / "checkpoints").glob("step-*"))
    described = json.loads((newest / "checkpoint.json").read_text())
    measured = json.loads((output / "evaluation" / "evaluation.json").read_text())["measured"]
    generated = json.loads((output / "generated" / "manifest.json").read_text())["generated"]
    return {
        "corpus": corpus["root_digest"],
        "step": described["step"],
        "weights": described["files"]["weights.safetensors"]["sha256"],
        "moments": described["files"]["optimizer.safetensors"]["sha256"],
        "loss": measured["loss"],
        "generated": generated["root_digest"],
    }


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pipeline ran once without trouble."""
    folder = tmp_path_factory.mktemp("calm")
    _write_inputs(folder)
    done = herd("pipeline", "--config", "pipeline.yaml", folder=folder)
    assert done.code == 0, done.err
    (folder / "summary.txt").write_text(done.out)
    (folder / "stderr.txt").write_text(done.err)
    return folder


@pytest.mark.timeout(300)
def test_the_summary_tells_where_things_are_and_how_to_look_at_the_runs(calm: Path) -> None:
    summary = (calm / "summary.txt").read_text()
    for part in (
        "out/corpus",
        "out/model",
        "out/evaluation",
        "out/generated",
        f"{_PROMPTS.read_text().splitlines()[0]!r} | ",
        "mlflow ui --backend",
    ):
        assert part in summary
    noise = [line for line in (calm / "stderr.txt").read_text().splitlines() if not line.startswith(_STAGES)]
    assert noise == []


def test_training_learned_and_every_prompt_was_completed(calm: Path) -> None:
    measured = json.loads((calm / "out" / "evaluation" / "evaluation.json").read_text())
    assert measured["measured"]["loss"] < 8.0  # untrained is ln 50257 = 10.82
    rows = [
        json.loads(line)
        for path in sorted((calm / "out" / "generated" / "rows").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert [row["prompt"] for row in rows] == _PROMPTS.read_text().splitlines()
    assert all(1 <= len(row["token_ids"]) <= 12 for row in rows)


def test_mlflow_holds_one_parent_run_and_a_child_for_each_stage(calm: Path) -> None:
    with sqlite3.connect(calm / "mlflow.db") as store:
        runs = dict(store.execute("select run_uuid, status from runs").fetchall())
        names = dict(store.execute("select run_uuid, name from runs").fetchall())
        parents = dict(store.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'").fetchall())
        steps = store.execute("select count(distinct step), count(*) from metrics where key = 'loss' and step > 0")
        distinct, total = steps.fetchone()
    assert len(runs) == 5
    assert set(runs.values()) == {"FINISHED"}
    assert sorted(names[run] for run in parents) == sorted(_STAGES)
    assert len(set(parents.values())) == 1
    assert (distinct, total) == (60, 60)


@pytest.mark.timeout(300)
def test_a_second_run_skips_every_stage_and_says_so(calm: Path) -> None:
    before = _digests(calm / "out")
    done = herd("pipeline", "--config", "pipeline.yaml", folder=calm)
    assert done.code == 0, done.err
    skipped = [line for line in done.err.splitlines() if "skipped" in line]
    assert [line.split(":")[0] for line in skipped] == list(_STAGES)
    assert _digests(calm / "out") == before


@pytest.mark.timeout(300)
def test_an_output_made_with_other_settings_is_refused_naming_the_difference(calm: Path) -> None:
    done = herd("pipeline", "--config", "pipeline.yaml", "--tokenize.validation_fraction", "0.2", folder=calm)
    assert done.code == 2
    assert "validation_fraction: found a corpus made with 0.3; expected 0.2; choose another output folder" in done.err
    assert "Traceback" not in done.err


@pytest.mark.timeout(900)
def test_ctrl_c_in_any_stage_stops_cleanly_and_a_rerun_ends_as_the_calm_run(calm: Path, tmp_path: Path) -> None:
    _write_inputs(tmp_path)
    # The first two stages begin with the start of Ray or of Ray Train; all but training may take but five seconds.
    for stage, seconds in zip(_STAGES, (4, 6, 2, 2), strict=True):
        stopped = herd_interrupted(
            "pipeline", "--config", "pipeline.yaml", folder=tmp_path, at=f"{stage}: writing", after_seconds=seconds
        )
        assert stopped.code == 130, stopped.err
        assert "Traceback" not in stopped.err
        assert "run the same command again to continue" in stopped.err
    done = herd("pipeline", "--config", "pipeline.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert _digests(tmp_path / "out") == _digests(calm / "out")
    leftovers = [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".tmp" or path.name == ".progress"]
    assert leftovers == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pretrain.train.num_stepz", "5"], "num_stepz"),
        (["--pretrain.train.num_steps", "many"], "many"),
        (["--pretrain.model.n_head", "5"], "model.n_head: found 5 heads, which do not divide n_embd 32"),
        (["--generate.prompts", "none.txt"], "none.txt: found no such file"),
        (["--tokenize.sources.0.paths", "nowhere"], "nowhere"),
        (["--pretrain.train.num_workers", "3"], "num_workers 3 is no power of two"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_mistake_ends_in_one_message_before_anything_is_written(
    tmp_path: Path, words: list[str], message: str
) -> None:
    _write_inputs(tmp_path)
    base = [] if words[0] == "--config" else ["--config", "pipeline.yaml"]
    done = herd("pipeline", *base, *words, folder=tmp_path)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out" / "corpus" / "manifest.json").exists()


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "empty.txt").touch()
    done = herd("tokenize", "--input", "text", "--output", "out", "--tokenizer.name", "bytes", folder=tmp_path)
    assert done.code == 2
    assert "no usable document" in done.err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.timeout(300)
def test_a_run_that_fails_says_where_in_one_line_and_exits_1(calm: Path, tmp_path: Path) -> None:
    words = ["--corpus", str(calm / "out" / "corpus"), "--output", str(tmp_path / "model")]
    shape = ["--model.n_layer", "1", "--model.n_head", "1", "--model.n_embd", "8", "--model.num_positions", "8"]
    batch = ["--train.batch_sequences", "4", "--train.micro_batch_sequences", "2", "--train.num_steps", "9"]
    done = herd("pretrain", *words, *shape, *batch, "--recipe.learning_rate", "1e30", folder=tmp_path)
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last.startswith("step ")
    assert "found loss nan and gradient norm nan; expected finite numbers; the last good checkpoint is none" in last
    assert "Traceback" not in done.err


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "text.txt").write_text("some text")
    done = herd("tokenize", "--input", "text.txt", "--output", "file/out", folder=tmp_path)
    assert done.code == 2
    assert "Not a directory" in done.err
    assert "Traceback" not in done.err


@pytest.mark.timeout(300)
def test_each_thing_made_leads_to_the_next_in_the_page(calm: Path) -> None:
    """From the corpus to the training run, its checkpoint, the runs that used it, and the generated dataset."""
    client: Any = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{calm}/mlflow.db")
    digests = _digests(calm / "out")
    (experiment,) = (one.experiment_id for one in client.search_experiments() if one.name == "gpt-herd")

    def runs(clause: str) -> list[str]:
        return sorted(run.data.tags["herd.kind"] for run in client.search_runs([experiment], clause))

    assert runs(f"tags.`herd.corpus` = '{digests['corpus']}'") == ["tokenize"]
    assert "pretrain" in runs(f"tags.`herd.dataset.training` = '{digests['corpus']}'")
    (trainer,) = client.search_runs([experiment], "tags.`herd.kind` = 'pretrain'")
    (dataset,) = [one.dataset for one in trainer.inputs.dataset_inputs]
    assert json.loads(dataset.profile)["digest"] == digests["corpus"]
    made = {model.model_id: model for model in client.search_logged_models([experiment])}
    assert made.keys() == {output.model_id for output in trainer.outputs.model_outputs}
    (final,) = [one for one in made.values() if one.tags["herd.checkpoint"] == digests["weights"]]
    assert (final.source_run_id, final.tags["herd.corpus"]) == (trainer.info.run_id, digests["corpus"])
    users = {
        run.data.tags["herd.kind"]: run
        for run in (client.get_run(found.info.run_id) for found in client.search_runs([experiment]))
        if final.model_id in {used.model_id for used in (run.inputs.model_inputs or [])}
    }
    assert users.keys() == {"evaluate", "generate"}
    generated = [one.dataset for one in users["generate"].inputs.dataset_inputs]
    assert digests["generated"] in {json.loads(one.profile)["digest"] for one in generated}
    assert users["generate"].data.tags["herd.generated"] == digests["generated"]
