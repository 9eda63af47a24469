"""A registered model in a real MLflow store: what it holds, who can load it, and that nothing in it is a pickle."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest

from cluster.registering import is_registered, register, serving_line, with_local_checkpoint
from cluster.tracking import TrackingOptions, open_run
from gpt_core.errors import CheckpointError
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.settings import GenerateJob, PretrainSettings, ServeJob, TrackingSettings
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description
from tests.unit.tiny_engine import SHAPE, TOKENIZER, make_engine, make_weights

NAME = "step-00000007"
PROMPTS = ["def main(", "return", "return"]
BYTES = {"name": "bytes", "digest": TOKENIZER.digest, "vocabulary_size": 257, "end_of_text": 256}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A run folder whose one checkpoint was registered twice, by two jobs."""
    place = tmp_path_factory.mktemp("registering")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    for number, alias in enumerate(("", "@champion")):
        output = place / f"run{number}"
        description = Description(7, 70, SHAPE, corpus_digest="c" * 64, tokenizer=BYTES, metrics={"loss": 2.5})
        weights = dict(reversed(make_weights().items()))  # training has an order of its own, too
        path = checkpoint.write(output, description, weights, {})
        with open_run(TrackingOptions(system_seconds=None), name="a", kind="pretrain", output=output) as run:
            digest = checkpoint.weights_digest(path)
            tags = {"herd.checkpoint": digest, "herd.corpus": "c" * 64}
            run.log_model(path.name, step=7, metrics={"loss": 2.5}, tags=tags)
            register("finetune", run, f"poet{alias}", path, output)
    return place


@pytest.fixture
def client(outputs):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{outputs}/mlflow.db")


@pytest.fixture
def loaded(outputs, monkeypatch):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{outputs}/mlflow.db")
    yield mlflow.pyfunc.load_model("models:/poet@champion")
    mlflow.set_tracking_uri("")


def expected_texts(**sampling):
    requests = [
        GenerationRequest(str(place), tuple(TOKENIZER.encode(prompt).tolist()), Sampling(**sampling), key=str(place))
        for place, prompt in enumerate(PROMPTS)
    ]
    return [completion.text for completion in make_engine(slots=8, precision="auto").run(requests)]


def test_each_job_makes_one_version_and_an_alias_points_to_the_newest_of_its_name(client):
    versions = client.search_model_versions("name = 'poet'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    assert client.get_model_version_by_alias("poet", "newest").version == 1
    assert client.get_model_version_by_alias("poet", "champion").version == 2


def test_a_version_leads_to_its_run_its_checkpoint_and_its_corpus(client, outputs):
    version = client.get_model_version_by_alias("poet", "newest")
    assert client.get_run(version.run_id).data.tags["herd.kind"] == "pretrain"
    assert version.tags["herd.checkpoint"] == checkpoint.weights_digest(checkpoint.list_paths(outputs / "run0")[0])
    assert version.tags["herd.corpus"] == "c" * 64
    model = client.get_logged_model(version.tags["herd.model"])
    assert {metric.key: metric.value for metric in model.metrics} == {"checkpoint/loss": 2.5}
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "poet", "version": version.version}]


def test_a_checkpoint_is_registered_under_each_name_and_alias_asked_for_and_once_under_each(outputs, client, capsys):
    output = outputs / "run2"
    description = Description(7, 70, SHAPE, corpus_digest="c" * 64, tokenizer=BYTES, metrics={"loss": 2.5})
    path = checkpoint.write(output, description, make_weights(), {})
    for name in ("bard", "bard@champion", "singer", "bard"):
        registered_before = is_registered(name, path.name, output)
        with open_run(TrackingOptions(system_seconds=None), name="a", kind="pretrain", output=output) as run:
            run.log_model(path.name, step=7, metrics={"loss": 2.5})
            register("finetune", run, name, path, output)
        assert is_registered(name, path.name, output)
    assert registered_before
    assert capsys.readouterr().err.count("finetune: registering step-00000007 as") == 3
    assert [version.version for version in client.search_model_versions("name = 'bard'")] == [1]
    assert client.get_model_version_by_alias("bard", "newest").version == 1
    assert client.get_model_version_by_alias("bard", "champion").version == 1
    assert client.get_model_version_by_alias("singer", "newest").version == 1
    model = client.get_logged_model(client.get_model_version("bard", 1).tags["herd.model"])
    linked = [{"name": name, "version": 1} for name in ("bard", "singer")]
    assert json.loads(model.tags["mlflow.modelVersions"]) == linked


def test_a_kill_between_writing_and_recording_a_registered_model_leaves_it_to_be_registered(tmp_path, monkeypatch):
    description = Description(7, 70, SHAPE, corpus_digest="c" * 64, tokenizer=BYTES, metrics={"loss": 2.5})
    path = checkpoint.write(tmp_path, description, make_weights(), {})
    killed = Mock(register_model=Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        register("finetune", killed, "poet", path, tmp_path)
    assert not is_registered("poet", path.name, tmp_path)


def test_a_registered_checkpoint_keeps_its_files_when_a_later_one_is_registered_before_the_store_took_it(tmp_path):
    record = Mock()
    for step in (7, 9):
        description = Description(step, 70, SHAPE, corpus_digest="c" * 64, tokenizer=BYTES, metrics={"loss": 2.5})
        register("finetune", record, "poet", checkpoint.write(tmp_path, description, make_weights(), {}), tmp_path)
    folders = [call.args[0] for call in record.register_model.call_args_list]
    assert [json.loads((folder / "data/model/herd.json").read_text())["step"] for folder in folders] == [7, 9]


def test_a_model_made_again_under_its_old_name_and_number_is_fetched_again(tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    for step in (7, 9):
        output = tmp_path / f"run{step}"
        description = Description(step, 70, SHAPE, corpus_digest="c" * 64, tokenizer=BYTES, metrics={"loss": 2.5})
        path = checkpoint.write(output, description, make_weights(), {})
        with open_run(TrackingOptions(system_seconds=None), name="a", kind="pretrain", output=output) as run:
            run.log_model(path.name, step=step, metrics={})
            register("finetune", run, "poet", path, output)
        assert checkpoint.load(with_local_checkpoint(ServeJob(checkpoint="models:/poet/1")).checkpoint).step == step
        MlflowClient(uri).delete_registered_model("poet")


def test_a_download_that_fails_leaves_nothing(outputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{outputs}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", Mock(side_effect=OSError("connection reset")))
    with pytest.raises(CheckpointError, match="connection reset"):
        with_local_checkpoint(ServeJob(checkpoint="models:/poet@newest"))
    assert not list((tmp_path / "runs/models").iterdir())


def test_a_run_that_used_a_checkpoint_has_it_as_input_once(client, outputs):
    version = client.get_model_version_by_alias("poet", "newest")
    output = outputs / "generated"
    with open_run(TrackingOptions(system_seconds=None), name="g", kind="generate", output=output) as run:
        run.log_model_input(version.tags["herd.checkpoint"])
        run.log_model_input(version.tags["herd.checkpoint"])
        run.log_model_input("e" * 64)  # made elsewhere
    used = client.get_run(run.run_id)
    assert len(used.inputs.model_inputs) == 1
    (model,) = (client.get_logged_model(used.inputs.model_inputs[0].model_id),)
    assert model.tags["herd.checkpoint"] == version.tags["herd.checkpoint"]
    assert used.data.tags["herd.checkpoint"] == "e" * 64


def test_a_loaded_model_completes_prompts_as_the_engine_does(loaded):
    import pandas as pd

    frame = pd.DataFrame({"prompt": PROMPTS})
    params = {"max_tokens": 12, "seed": 5, "temperature": 0.8, "top_k": 40}
    texts = loaded.predict(frame, params=params)
    assert texts == expected_texts(**params)
    assert texts[1] != texts[2]  # one text for each place
    assert loaded.predict(PROMPTS, params=params) == texts


def test_a_loaded_model_has_a_signature_and_refuses_what_it_does_not_name(loaded):
    from mlflow.exceptions import MlflowException

    assert [str(column.type) for column in loaded.metadata.signature.inputs] == ["DataType.string"]
    assert {param.name for param in loaded.metadata.signature.params} == {"max_tokens", "temperature", "top_k", "seed"}
    with pytest.raises(MlflowException, match="string"):
        loaded.predict([3])


def test_no_file_of_a_registered_model_is_a_pickle(outputs):
    files = {path.suffix for path in (outputs / "run0" / "registered" / NAME).rglob("*") if path.is_file()}
    assert files <= {"", ".json", ".py", ".safetensors", ".txt", ".yaml", ".tiktoken", ".html", ".md", ".cpp", ".h"}


def test_a_model_loads_where_this_package_is_not_installed(outputs):
    script = (
        "import mlflow, sys;"
        f"m = mlflow.pyfunc.load_model({str(outputs / 'run1' / 'registered' / NAME)!r});"
        "print(m.predict(['return'], params={'max_tokens': 4}).__len__(), sys.modules['gpt_core'].__path__[0])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=outputs, capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "1"
    assert f"registered/{NAME}/code/gpt_core" in done.stdout


@pytest.mark.parametrize("label", ["@champion", "/2"])
def test_other_jobs_take_a_registered_model_as_checkpoint_to_the_bit(outputs, label, capsys):
    job = GenerateJob(checkpoint=f"models:/poet{label}", prompts=("p.txt",), output=str(outputs / "generated"))
    fetched = checkpoint.load(with_local_checkpoint(job).checkpoint)
    (original,) = checkpoint.list_paths(outputs / "run1")
    assert checkpoint.weights_digest(fetched.path) == checkpoint.weights_digest(original)
    assert (fetched.step, fetched.description.corpus_digest) == (7, "c" * 64)
    assert fetched.tokenizer == BYTES


def test_generating_and_serving_by_name_compute_with_the_registered_weights(outputs, tmp_path, monkeypatch, capsys):
    from cluster import generating
    from cluster.serving import service

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{outputs}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("def main(\n")
    job = GenerateJob(
        checkpoint="models:/poet@champion", prompts=(str(tmp_path / "p.txt"),), output=str(tmp_path / "g")
    )
    original = checkpoint.weights_digest(checkpoint.list_paths(outputs / "run1")[0])
    assert generating.resolve(with_local_checkpoint(job)).decisive["checkpoint"] == original
    served = service.resolve(with_local_checkpoint(ServeJob(checkpoint="models:/poet@champion")))
    assert served.facts["checkpoint"] == original


def test_serving_takes_a_registered_model_from_the_address_in_the_environment(outputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{outputs}/mlflow.db")
    served = with_local_checkpoint(ServeJob(checkpoint="models:/poet@newest")).checkpoint
    assert re.fullmatch(re.escape(f"{tmp_path}/runs/models/poet-1-") + "[0-9a-f]{12}/run", served)
    assert checkpoint.load(served).step == 7


def test_a_job_says_how_to_serve_what_it_registered_where_serving_here_would_not_find_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = TrackingSettings()
    assert serving_line("poet", tracking, f"{tmp_path}/runs/mine/model") == (
        f"\nserve it: MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/runs/mine/mlflow.db herd serve --checkpoint "
        "models:/poet@newest"
    )
    assert serving_line("poet", tracking, f"{tmp_path}/runs/model") == ""
    assert serving_line(None, tracking, f"{tmp_path}/runs/mine/model") == ""
    assert serving_line("poet", TrackingSettings(enabled=False), f"{tmp_path}/runs/mine/model") == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert serving_line("poet@best", tracking, f"{tmp_path}/runs/mine/model") == ""
    assert serving_line("poet@best", TrackingSettings(uri="http://other:5000"), "model") == (
        "\nserve it: MLFLOW_TRACKING_URI=http://other:5000 herd serve --checkpoint models:/poet@best"
    )


@pytest.mark.parametrize("place", ["models:/poet@nobody", "models:/nothing/1", "models:/poet"])
def test_a_model_that_is_not_there_is_named(outputs, place):
    job = GenerateJob(checkpoint=place, prompts=("p.txt",), output=str(outputs / "generated"))
    with pytest.raises(CheckpointError, match=place):
        with_local_checkpoint(job)


def test_a_model_that_is_not_there_names_the_store_that_was_asked(outputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{outputs}/mlflow.db")
    with pytest.raises(
        CheckpointError, match=f"not found' from MLflow at sqlite:///{outputs}/mlflow.db; .*another store"
    ):
        with_local_checkpoint(ServeJob(checkpoint="models:/nothing@newest"))


def test_a_missing_database_is_not_made_by_asking(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    job = GenerateJob(checkpoint="models:/poet/1", prompts=("p.txt",), output=str(tmp_path / "generated"))
    with pytest.raises(CheckpointError, match="set MLFLOW_TRACKING_URI"):
        with_local_checkpoint(job)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_outside_of_the_model_is_refused(outputs, tmp_path):
    from gpt_core.exchange.registered_model import package, unpack

    folder = package(checkpoint.load(outputs / "run0"), tmp_path / "model")
    facts = json.loads((folder / "herd.json").read_text())
    facts["tokenizer"]["name"] = "../../etc/passwd"
    (folder / "herd.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="passwd"):
        unpack(folder, tmp_path / "run")


def test_threads_that_share_a_loaded_model_get_the_texts_of_one_alone(outputs, tmp_path):
    from gpt_core.exchange.registered_model import PromptModel, package

    model = PromptModel(package(checkpoint.load(outputs / "run0"), tmp_path / "model"))
    params = {"max_tokens": 6, "seed": 5, "stop": ["zzz"]}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.predict(PROMPTS, params), range(40)))
    assert found == [expected_texts(max_tokens=6, seed=5)] * 40


def test_a_name_that_mlflow_would_refuse_is_refused_before_training():
    with pytest.raises(ValueError, match="register"):
        PretrainSettings(corpus="c", output="o", register="a/b")
