"""`herd generate` on Ray: the same dataset on any number of replicas and actors, and no row lost."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from cluster import generating
from cluster.serving import deployment, service
from cluster.serving.deployment import with_settled_precision
from cluster.serving.http_guard import Access
from cluster.session import Cluster
from cluster.tracking import TrackingOptions, open_run
from gpt_core.errors import CheckpointError, CorpusError, ResourceError, StaleOutputError
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.prompts import read_range
from gpt_core.generation.request import GenerationRequest
from gpt_core.ledger import Ledger
from gpt_core.model.precision import can_compute_bf16
from gpt_core.settings import EngineSettings, GenerateSettings, PoolSettings, SamplingSettings, ServeSettings
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from tests.tiny_checkpoint import write_tiny_checkpoint

NUM_GOOD = 24
POISON = {
    4: {"prompt": "p" * 300, "id": "long"},
    9: {"prompt": 5},
    14: {"prompt": "p", "sampling": {"heat": 1}},
    19: {"prompt": "p", "id": "prompt 0"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of several kinds; those of POISON stand at the lines it names, and one more is no UTF-8."""
    good = ({"prompt": f"Prompt {i} " * (1 + i % 5), "id": f"prompt {i}"} for i in range(NUM_GOOD))
    sampling = [{}, {"seed": 3, "n": 2}, {"logprobs": 2}, {"temperature": 0.0, "max_tokens": 30}]
    rows: list[bytes] = []
    while len(rows) < NUM_GOOD + len(POISON):
        line = len(rows) + 1
        row = POISON.get(line) or {**next(good), "sampling": sampling[line % 4]}
        rows.append(json.dumps(row).encode())
    path = tmp_path_factory.mktemp("prompts") / "some.jsonl"
    path.write_bytes(b"\n".join([*rows, b'{"prompt": "\xff"}']) + b"\n")
    return path


@pytest.fixture(scope="module")
def inputs(model: Path, prompts: Path) -> tuple[Path, Path]:
    return model, prompts


def settings_for(model: Path, prompts: Path, output: Path, **changes: Any) -> GenerateSettings:
    given: dict[str, Any] = {
        "checkpoint": str(model),
        "prompts": (str(prompts),),
        "output": str(output),
        "prompts_per_shard": 5,
        "sampling": SamplingSettings(max_tokens=12, seed=1),
        "engine": EngineSettings(num_slots=4, precision="fp32", device="cpu"),
    }
    return GenerateSettings(**(given | changes))


def generate(settings: GenerateSettings, cluster: Cluster) -> generating.Generated:
    inputs = generating.resolve(settings)
    options = TrackingOptions(enabled=False, system_seconds=None)
    with open_run(options, name="test", kind="generate", output=Path(settings.output)) as run:
        return generating.perform(settings, inputs, cluster, run)


def files_of(output: Path) -> dict[str, bytes]:
    """Return the bytes of everything a dataset consists of."""
    paths = [output / "manifest.json", output / "rejects.jsonl", *(output / "rows").iterdir()]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(output.glob("rows/*.jsonl")) for line in path.open()]


@pytest.fixture(scope="module")
def calm(model: Path, prompts: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one replica and one actor."""
    output = tmp_path_factory.mktemp("datasets") / "calm"
    generate(settings_for(model, prompts, output, pool=PoolSettings(cpus_per_actor=0.1, max_actors=1)), cluster)
    return output


def test_rows_are_what_the_bare_engine_computes(calm: Path, model: Path, prompts: Path) -> None:
    settings = settings_for(model, prompts, calm)
    scan = generating.resolve(settings).scan
    read = [
        prompt
        for cut in scan.ranges
        for prompt in read_range(scan.files, cut, generating.sampling_of(settings.sampling))
    ]
    loaded = checkpoint.load(model)
    engine = Engine(loaded.weights, loaded.shape, load_tokenizer("bytes"), EngineOptions(slots=2, precision="fp32"))
    requests = [GenerationRequest(prompt.id, tuple(prompt.text.encode()), prompt.sampling) for prompt in read]
    expected = [completion for completion in engine.run(requests) if completion.error is None]
    rows = rows_of(calm)
    assert [(row["id"], row["sample"]) for row in rows] == [(done.request_id, done.sample) for done in expected]
    for row, done in zip(rows, expected, strict=True):
        assert (row["text"], tuple(row["token_ids"]), row["finish_reason"]) == (
            done.text, done.token_ids, done.finish_reason,
        )  # fmt: skip
        logprobs = None if done.logprobs is None else [entry.logprob for entry in done.logprobs]
        assert row["logprobs"] == logprobs
        assert row["checkpoint"] == checkpoint.weights_digest(loaded.path)
    alternatives = [row["top_logprobs"] for row in rows if row["top_logprobs"]]
    assert alternatives
    assert all(len(top) == 2 for tops in alternatives for top in tops)


def test_every_good_row_is_there_once_and_every_poison_row_is_set_aside_with_its_place(calm: Path) -> None:
    keys = [(row["id"], row["sample"]) for row in rows_of(calm)]
    assert len(set(keys)) == len(keys)
    assert {name for name, _ in keys} == {f"prompt {i}" for i in range(NUM_GOOD)}
    rejects = [json.loads(line) for line in (calm / "rejects.jsonl").open()]
    assert [(reject["file"], reject["line"]) for reject in rejects] == [
        ("some.jsonl", line) for line in (*POISON, NUM_GOOD + len(POISON) + 1)
    ]
    told = [reject["reason"] for reject in rejects]
    for reason, expected in zip(
        told, ["a prompt of 300 tokens", "found 5", "'heat'", "second time", "UTF-8"], strict=True
    ):
        assert expected in reason


@pytest.mark.parametrize(("replicas", "actors", "slots"), [(3, 1, 4), (2, 1, 5), (1, 2, 3)])
def test_replicas_actors_and_slots_change_no_byte(
    inputs: tuple[Path, Path], cluster: Cluster, calm: Path, replicas: int, actors: int, slots: int
) -> None:
    output = calm.parent / f"{replicas} {actors}"
    settings = settings_for(
        *inputs, output,
        engine=EngineSettings(num_replicas=replicas, num_slots=slots, precision="fp32", device="cpu"),
        pool=PoolSettings(cpus_per_actor=0.1, min_actors=actors, max_actors=actors),
    )  # fmt: skip
    generate(settings, cluster)
    assert files_of(output) == files_of(calm)


def test_a_running_service_makes_the_same_bytes_and_another_checkpoint_is_refused(
    inputs: tuple[Path, Path], cluster: Cluster, calm: Path, tmp_path: Path
) -> None:
    model, prompts = inputs
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    engine = EngineSettings(num_slots=3, precision="fp32", device="cpu")
    served = ServeSettings(checkpoint=str(model), port=port, engine=engine, page=False)
    with service.running(served, service.resolve(served), Access(None, None), cluster) as address:
        generate(settings_for(model, prompts, tmp_path / "out", address=address), cluster)
        other = settings_for(write_tiny_checkpoint(tmp_path, seed=5), prompts, tmp_path / "other", address=address)
        with pytest.raises(CheckpointError, match="a service of other weights"):
            generating.resolve(other)
    assert files_of(tmp_path / "out") == files_of(calm)


def test_nothing_is_left_on_the_cluster_and_no_other_application_is_touched(
    model: Path, prompts: Path, cluster: Cluster, tmp_path: Path
) -> None:
    from ray import serve

    @serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
    class Other:
        def __call__(self) -> str:
            return "still here"

    handle = serve.run(Other.bind(), name="other", route_prefix=None)
    generate(settings_for(model, prompts, tmp_path), cluster)
    assert set(serve.status().applications) - {"herd"} == {"other"}
    assert handle.remote().result(timeout_s=10) == "still here"
    serve.delete("other")


def test_replicas_that_hold_the_whole_cluster_do_not_keep_auto_precision_from_being_settled(cluster: Cluster) -> None:
    import ray

    class Replica:
        def runs(self) -> bool:
            return True

    orphaned: Any = ray.remote(num_cpus=cluster.num_cpus)(Replica).remote()
    assert ray.get(orphaned.runs.remote(), timeout=60)
    settled = with_settled_precision(EngineSettings(device="cpu"), replace(cluster, address="auto"))
    assert settled.precision == ("bf16" if can_compute_bf16(torch.device("cpu")) else "fp32")
    ray.kill(orphaned)


def test_replicas_that_no_node_can_hold_are_told_after_a_while(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "_PRECISION_SECONDS", 1.0)
    engine = EngineSettings(device="cpu", threads_per_replica=5)
    with pytest.raises(ResourceError, match="no answer of a node with 5 CPUs and 0 GPUs in 1 s"):
        with_settled_precision(engine, Cluster("auto", num_cpus=8, num_gpus=0))


def test_arrow_files_hold_the_same_rows(
    model: Path, prompts: Path, cluster: Cluster, calm: Path, tmp_path: Path
) -> None:
    generate(settings_for(model, prompts, tmp_path, format="arrow"), cluster)
    tables = [pa.ipc.open_file(path).read_all() for path in sorted(tmp_path.glob("rows/*.arrow"))]
    names = ("id", "sample", "prompt", "text", "token_ids", "finish_reason", "seed", "checkpoint")
    found = [{name: row[name] for name in names} for table in tables for row in table.to_pylist()]
    assert found == [{name: row[name] for name in names} for row in rows_of(calm)]


def test_a_finished_dataset_is_taken_as_it_is_and_refused_to_others(model: Path, prompts: Path, calm: Path) -> None:
    same = settings_for(model, prompts, calm)
    finished = generating.finished(same, generating.resolve(same))
    assert finished is not None
    assert finished.num_rows == len(rows_of(calm))
    assert finished.num_rejects == 5
    hotter = settings_for(model, prompts, calm, sampling=SamplingSettings(max_tokens=12, seed=2))
    with pytest.raises(StaleOutputError, match=r"sampling\.seed: found a dataset made with 1; expected 2"):
        generating.finished(hotter, generating.resolve(hotter))


def test_another_checkpoint_is_refused_on_the_same_output(prompts: Path, calm: Path, tmp_path: Path) -> None:
    other = settings_for(write_tiny_checkpoint(tmp_path, seed=5), prompts, calm)
    with pytest.raises(StaleOutputError, match="checkpoint: found a dataset made with"):
        generating.finished(other, generating.resolve(other))


def test_a_dataset_begun_in_another_precision_is_not_gone_on_with(
    model: Path, prompts: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    automatic = settings_for(model, prompts, tmp_path, engine=EngineSettings(num_slots=4, device="cpu"))
    decisive = generating.resolve(automatic).decisive
    Ledger(str(tmp_path)).open({**decisive, "precision": "bf16"})  # begun on a machine with instructions for it
    monkeypatch.setattr("gpt_core.model.precision.can_compute_bf16", lambda device: False)
    with pytest.raises(StaleOutputError, match=r"precision.*'bf16'.*'fp32'"):
        generate(automatic, cluster)


def test_a_job_without_a_usable_prompt_says_why(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(CorpusError, match=r"1 row set aside, the first at bad\.jsonl:1: found the field 'text'"):
        generating.resolve(settings_for(model, tmp_path / "bad.jsonl", tmp_path / "out"))
