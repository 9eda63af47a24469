"""`herd tokenize` on actors: one digest for any number of them, either backend, any place, and any failure."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import tokenizing
from cluster.recording.record_book import Run
from cluster.session import Cluster
from cluster.tokenizing import Tokenized
from gpt_core.corpus import manifest
from gpt_core.corpus.corpus import Corpus
from gpt_core.corpus.tokenize_shard import ShardTokenizer
from gpt_core.corpus.verify import verify
from gpt_core.errors import CorpusError, RunFailedError
from gpt_core.ledger import FOLDER
from gpt_core.settings import TokenizeSettings
from gpt_core.storage import Storage
from tests.corpus_text import NUM_DOCUMENTS, NUM_REJECTED, write_sources
from tests.unit.test_storage_s3 import bucket  # noqa: F401 - a fixture


class _NoRun(Run):
    """Takes no records."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: Any, *, step: int, tokens: int | None = None) -> None:
        self.metrics |= metrics

    def set_tags(self, tags: Any) -> None: ...

    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...

    def log_file(self, name: str, content: bytes) -> None: ...

    def log_dataset(self, *described: Any, **facts: Any) -> None: ...


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return write_sources(tmp_path_factory.mktemp("text"))


def _settings(sources: list[dict[str, object]], output: str, **changes: Any) -> TokenizeSettings:
    given: dict[str, Any] = {
        "sources": sources,
        "output": output,
        "shard_bytes": 6000,
        "validation_fraction": 0.2,
        "tokenizer": {"backend": "tiktoken"},
        "pool": {"max_actors": 2},
    }
    return TokenizeSettings.model_validate(given | changes)


def _tokenize(settings: TokenizeSettings, cluster: Cluster) -> Tokenized:
    inputs = tokenizing.resolve(settings)
    assert tokenizing.finished(settings, inputs) is None
    made = tokenizing.perform(settings, inputs, cluster, _NoRun())
    assert tokenizing.finished(settings, inputs) == made
    return made


@pytest.fixture(scope="module")
def calm(sources: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> Tokenized:
    """What one worker makes in this process, without Ray."""
    folder = str(tmp_path_factory.mktemp("calm"))
    settings = _settings(sources, folder)
    inputs = tokenizing.resolve(settings)
    options = tokenizing.options_for(settings, inputs, settings.tokenizer.name)
    worker = ShardTokenizer(options)
    rows = [worker(plan) for plan in inputs.plans]
    written = manifest.write(folder, tokenizing.contents_of(settings, inputs, lambda: rows, settings.tokenizer.name))
    return tokenizing.summary_of(written)


@pytest.mark.parametrize(("num_actors", "backend"), [(1, "tiktoken"), (2, "gigatoken"), (3, "auto")])
def test_any_number_of_actors_and_either_backend_make_one_corpus(
    cluster: Cluster,
    sources: list[dict[str, object]],
    calm: Tokenized,
    tmp_path: Path,
    num_actors: int,
    backend: str,
) -> None:
    pool = {"min_actors": num_actors, "max_actors": num_actors}
    settings = _settings(sources, str(tmp_path), tokenizer={"backend": backend}, pool=pool)
    assert _tokenize(settings, cluster) == calm
    found = manifest.read(str(tmp_path))
    assert found.num_documents_in == sum(NUM_DOCUMENTS.values())
    assert found.num_rejected == NUM_REJECTED
    assert found.num_documents_in == calm.num_documents + calm.num_rejected
    assert found.weights == {"web": 3.0, "books": 1.0}
    rejects = _rejects(tmp_path)
    assert [(reject["source"], reject["line"]) for reject in rejects] == [("web", line) for line in (41, 42, 43, 44)]
    plain = (Path(str(sources[0]["paths"][0])) / "plain.jsonl").read_bytes()  # type: ignore[index]
    assert [plain[reject["start"] :].split(b"\n")[0] for reject in rejects] == plain.split(b"\n")[40:44]
    assert verify(str(tmp_path)) == []
    assert not (tmp_path / FOLDER).exists()


def test_files_that_were_passed_over_are_told_of_once(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.exe", "c.bz2"):
        (tmp_path / "in" / name).write_text("x")
    _tokenize(_settings([{"name": "all", "paths": [str(tmp_path / "in")]}], str(tmp_path / "out")), cluster)
    told = "tokenize: left out 2 files in folders, hidden or of no known suffix (1 .bz2, 1 .exe); a glob takes any"
    assert capsys.readouterr().err.count(told) == 1


def _rejects(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "rejects").iterdir())
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


class _Counting(ShardTokenizer):
    """Writes down every shard it is given, and once fails or dies in the one named, before or after its files."""

    fault: tuple[str, int] = ("", -1)

    def __call__(self, plan: Any) -> dict[str, Any]:
        folder = Path(self._options.output).with_suffix(".calls")
        folder.mkdir(exist_ok=True)
        with (folder / str(plan.index)).open("a") as calls:
            calls.write("x")
        row = super().__call__(plan)
        kind, index = self.fault
        if plan.index == index and kind == "killed once" and (folder / str(plan.index)).read_text() == "x":
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.index == index and kind == "fails":
            raise RuntimeError("no more")
        return row


class _KilledOnce(_Counting):
    fault = ("killed once", 3)


class _Failing(_Counting):
    fault = ("fails", 2)


def _calls(output: Path) -> dict[int, int]:
    return {int(path.name): len(path.read_text()) for path in output.with_suffix(".calls").iterdir()}


def test_an_actor_killed_between_its_files_and_its_row_costs_one_shard(
    cluster: Cluster,
    sources: list[dict[str, object]],
    calm: Tokenized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizing, "ShardTokenizer", _KilledOnce)
    settings = _settings(sources, str(tmp_path / "out"))
    assert _tokenize(settings, cluster) == calm
    calls = _calls(tmp_path / "out")
    assert calls.pop(3) == 2
    assert set(calls.values()) == {1}


def test_a_rerun_after_a_failure_does_not_redo_finished_shards(
    cluster: Cluster,
    sources: list[dict[str, object]],
    calm: Tokenized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = _settings(sources, str(tmp_path / "out"), pool={"max_actors": 2, "max_tries": 2})
    monkeypatch.setattr(tokenizing, "ShardTokenizer", _Failing)
    with pytest.raises(RunFailedError, match=r"shard 2 of .*failed 2 times; the first with: RuntimeError: no more"):
        _tokenize(settings, cluster)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(tokenizing, "ShardTokenizer", _Counting)
    assert _tokenize(settings, cluster) == calm
    calls = _calls(tmp_path / "out")
    assert calls.pop(2) == 3
    assert set(calls.values()) == {1}


def test_a_share_of_rejects_above_the_limit_fails_and_commits_nothing(
    cluster: Cluster, sources: list[dict[str, object]], tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match="max_reject_share: found 4 of 145 documents set aside; expected at most"):
        _tokenize(_settings(sources, str(tmp_path), max_reject_share=0.01), cluster)
    assert not (tmp_path / "manifest.json").exists()
    assert [reject["line"] for reject in _rejects(tmp_path)] == [41, 42, 43, 44]


class _FailingAtUrl(ShardTokenizer):
    def __call__(self, plan: Any) -> dict[str, Any]:
        if plan.index == 2:
            raise RuntimeError("no more")
        return super().__call__(plan)


def _told_of_the_server(kind: type[ShardTokenizer]) -> Callable[[Any], ShardTokenizer]:
    """Return what makes a worker in an actor that was started before the test's S3 server."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def make(options: Any) -> ShardTokenizer:
        os.environ.update(environment)
        return kind(options)

    return make


def test_a_corpus_in_s3_is_made_resumed_verified_and_read_as_one_on_a_disk(
    cluster: Cluster,
    bucket: str,  # noqa: F811
    sources: list[dict[str, object]],
    calm: Tokenized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = _settings(sources, f"{bucket}/corpus", pool={"max_actors": 2, "max_tries": 1})
    monkeypatch.setattr(tokenizing, "ShardTokenizer", _told_of_the_server(_FailingAtUrl))
    with pytest.raises(RunFailedError, match=r"shard 2 of s3://corpora/corpus"):
        _tokenize(settings, cluster)
    monkeypatch.setattr(tokenizing, "ShardTokenizer", _told_of_the_server(ShardTokenizer))
    assert _tokenize(settings, cluster) == calm
    assert verify(settings.output) == []
    names = {name.split("/")[0] for name, _ in Storage.of(settings.output).list_files(settings.output)}
    assert names == {"train", "validation", "rejects", "manifest.json", "shards.arrow", "batches.arrow", "files.arrow"}
    monkeypatch.setattr(tokenizing, "ShardTokenizer", ShardTokenizer)
    _tokenize(_settings(sources, str(tmp_path)), cluster)
    local, remote = Corpus(str(tmp_path)), Corpus(settings.output)
    order = local.order(seed=1, window_tokens=16, sequences_per_step=4)
    for step in range(5):
        assert remote.batch(order, step).tolist() == local.batch(order, step).tolist()
