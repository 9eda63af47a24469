"""Submitting without a cluster: addresses, needs, packages, log lines and exit codes."""

import asyncio
import io
import json
import os
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Literal

import pytest

from cluster.submission import submitting
from cluster.submission.follower import Follower
from cluster.submission.head import Head, HeadSilentError, JobState, Nodes
from cluster.submission.head_address import address_of
from cluster.submission.job_package import SETTINGS_FILE, package_of
from cluster.submission.needs import needs_of, unmet
from gpt_core.errors import ResourceError, RunFailedError
from gpt_core.settings import (
    ClusterSettings,
    EngineSettings,
    GenerateJob,
    GenerateStage,
    PipelineJob,
    PoolSettings,
    PretrainJob,
    PretrainStage,
    TokenizeJob,
    TokenizerSettings,
    TokenizeStage,
    TrainSettings,
)
from gpt_core.tokens.tokenizer import TiktokenTokenizer, load_tokenizer
from gpt_core.tokens.train_tokenizer import write_ranks
from jobs import cli, submit, submitted
from jobs.command_line.loader import load


def state(status: str, exit_code: int | None = None, message: str = "") -> JobState:
    return JobState("job-1", status, message, exit_code, 1.0, None, {})


class FakeHead(Head):
    """A head whose log streams and states are given beforehand; an exception among them is raised."""

    def __init__(self, streams: Sequence[Sequence[str | Exception]], states: Sequence[JobState | Exception]) -> None:
        self.address = "http://head:8265"
        self.streams, self.states, self.log = list(streams), list(states), ""
        self.stopped = False

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        for piece in self.streams.pop(0) if self.streams else []:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def logs(self, job_id: str) -> str:
        return self.log

    def job(self, job_id: str) -> JobState:
        told = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(told, Exception):
            raise told
        return told

    def stop(self, job_id: str) -> None:
        self.stopped = True
        self.states = [state("STOPPED")]


# --- addresses


@pytest.mark.parametrize(
    ("setting", "found", "remedy"),
    [
        ("auto", "a word for this machine's own Ray", "write http://127.0.0.1:8265"),
        ("10.0.0.5:6379", "no http:// before the host", "write http://10.0.0.5:8265, the port of Ray's dashboard"),
        ("head", "no http:// before the host", "write http://head:8265, the port of Ray's dashboard"),
        ("ray://head:10001", "a ray:// address", "write http://head:8265; jobs go through Ray's dashboard"),
        ("http://head", "no port", "write http://head:8265, or :80 where a proxy listens there"),
        ("http://head:port", "a port that is no number from 0 to 65535", "write http://head:8265"),
        ("http://head:99999", "a port that is no number from 0 to 65535", "write http://head:8265"),
        ("http://:8265", "no host", "write http://HEAD:8265"),
        ("http://the head:8265", "no host", "write http://HEAD:8265"),
    ],
)
def test_an_address_of_a_wrong_form_is_answered_with_the_right_one(setting, found, remedy):
    with pytest.raises(ResourceError) as caught:
        address_of(setting)
    assert str(caught.value) == f"cluster.address {setting}: found {found}; expected http://HEAD:8265; {remedy}"


@pytest.mark.parametrize(
    "setting", ["http://head:8265", "http://head:8265/", "https://ray.example.org", "http://[::1]:8265"]
)
def test_an_http_address_is_taken_as_it_is(setting):
    assert address_of(setting) == setting.rstrip("/")


def test_without_a_setting_rays_own_variables_name_the_head(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    with pytest.raises(ResourceError, match="found none"):
        address_of(None)
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    assert address_of(None) == "http://other:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert address_of(None) == "http://head:8265"


# --- needs


def nodes(*cpus: float, gpus: float = 0) -> Nodes:
    return Nodes(tuple(f"n{number}" for number in range(len(cpus))), cpus, (gpus, *([0.0] * (len(cpus) - 1))))


def test_the_parts_of_a_stage_are_needed_together_and_stages_one_after_another():
    job = PipelineJob(
        output="/runs/a",
        tokenize=TokenizeStage(
            input=("/text",), validation_fraction=0.1, pool=PoolSettings(min_actors=3, cpus_per_actor=0.5)
        ),
        pretrain=PretrainStage(train=TrainSettings(num_workers=4, threads_per_worker=2)),
        generate=GenerateStage(prompts=("/p",), engine=EngineSettings(num_replicas=2, threads_per_replica=3)),
    )
    assert [(need.cpus, need.cpus_of_one) for need in needs_of(job)] == [
        (1.5, 0.5),
        (8, 2),
        (pytest.approx(0.9), 0.9),
        (pytest.approx(6.1), 3),
    ]


def test_a_need_above_all_nodes_or_above_the_largest_is_told_with_the_setting():
    job = PretrainJob(corpus="/c", output="/o", train=TrainSettings(num_workers=4, threads_per_worker=2))
    (need,) = needs_of(job)
    assert unmet(need, nodes(4, 4)) is None
    assert str(unmet(need, nodes(2, 2))) == (
        "train.num_workers x train.threads_per_worker: found a need of 8 CPUs; "
        "expected at most the 4 the cluster has; lower it, or add nodes to the cluster"
    )
    assert "2 CPUs on one node; expected at most the 1 " in str(unmet(need, nodes(*[1] * 8)))


def test_gpus_are_needed_only_where_the_settings_insist_on_them():
    def needed(device: Literal["auto", "cpu", "gpu"]) -> float:
        job = PretrainJob(corpus="/c", output="/o", train=TrainSettings(num_workers=4, device=device))
        return next(needs_of(job)).gpus

    assert [needed("auto"), needed("cpu"), needed("gpu")] == [0, 0, 4]


# --- packages


def unpacked(content: bytes, folder: Path) -> Path:
    zipfile.ZipFile(io.BytesIO(content)).extractall(folder)
    return folder


def job_in(folder: Path, **changes) -> GenerateJob:
    places = {"checkpoint": "/shared/model", "output": "/shared/out", "prompts": (str(folder / "prompts.txt"),)}
    return GenerateJob(**(places | changes), cluster=ClusterSettings(address="http://head:8265"))


def test_a_package_holds_code_settings_and_prompts_and_is_small(tmp_path):
    (tmp_path / "prompts.txt").write_text("once\n")
    content = package_of(job_in(tmp_path), tmp_path).zipped()
    assert len(content) < 1_000_000
    names = set(zipfile.ZipFile(io.BytesIO(content)).namelist())
    assert {"jobs/cli.py", "cluster/session.py", "gpt_core/settings/base.py", "jobs/configs/quickstart.yaml"} <= names
    assert {SETTINGS_FILE, "inputs/prompts.txt"} <= names
    assert not any("__pycache__" in name or name.startswith(("tests/", "benchmarks/")) for name in names)


def test_equal_content_makes_equal_bytes(tmp_path):
    (tmp_path / "prompts.txt").write_text("once\n")
    first = package_of(job_in(tmp_path), tmp_path).zipped()
    os.utime(tmp_path / "prompts.txt", (1, 1))
    assert package_of(job_in(tmp_path), tmp_path).zipped() == first


def test_the_cluster_reads_the_same_settings_with_prompts_from_the_package(tmp_path, monkeypatch):
    (tmp_path / "work" / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt"):
        (tmp_path / "work" / name).write_text(name)
    monkeypatch.chdir(tmp_path / "work")
    job = job_in(tmp_path, prompts=("a.txt", "sub", "*/*.txt", "/elsewhere/c.txt", "s3://bucket/d.txt"))
    folder = unpacked(package_of(job, tmp_path / "work").zipped(), tmp_path / "there")
    monkeypatch.chdir(folder)
    there = load(GenerateJob, ["--config", SETTINGS_FILE], "herd generate")
    places = [str(folder / "inputs" / name) for name in ("a.txt", "sub", "*/*.txt")]
    assert there.prompts == (*places, "/elsewhere/c.txt", "s3://bucket/d.txt")
    assert (folder / "inputs" / "sub" / "b.txt").read_text() == "sub/b.txt"
    same = {"prompts", "cluster"}
    assert there.model_dump(exclude=same) == job.model_dump(exclude=same)
    assert there.cluster.address is None


def test_prompts_that_are_too_large_or_missing_stay_where_they_are_and_are_named(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(os.urandom(600_000))
    package = package_of(job_in(tmp_path, prompts=(f"{tmp_path}/prompts.txt", f"{tmp_path}/none.txt")), tmp_path)
    assert package.settings["prompts"] == [f"{tmp_path}/prompts.txt", f"{tmp_path}/none.txt"]
    assert package.left == [f"{tmp_path}/prompts.txt (600,000 bytes)", f"{tmp_path}/none.txt (0 bytes)"]


def test_a_vocabulary_of_the_users_own_travels_with_the_job_and_is_read_there(tmp_path, monkeypatch):
    """Of 50,257 ids, as the largest that are usual: its corpus carries it to the workers."""
    (tmp_path / "work").mkdir()
    gpt2 = load_tokenizer("gpt2")
    assert isinstance(gpt2, TiktokenTokenizer)
    write_ranks(tmp_path / "work" / "my.tiktoken", gpt2.ranks)
    monkeypatch.chdir(tmp_path / "work")
    job = TokenizeJob(input=("/t",), output="/o", tokenizer=TokenizerSettings(name="my.tiktoken"))
    package = package_of(job, tmp_path / "work")
    assert package.left == []
    folder = unpacked(package.zipped(), tmp_path / "there")
    (tmp_path / "work" / "my.tiktoken").unlink()
    monkeypatch.chdir(folder)
    there = load(TokenizeJob, ["--config", SETTINGS_FILE], "herd tokenize").tokenizer.name
    assert there == str(folder / "inputs" / "my.tiktoken")
    assert load_tokenizer(there).encode("Once upon a time").tolist() == [7454, 2402, 257, 640]  # GPT-2's published ids


def test_a_vocabulary_too_large_for_the_package_stays_where_it_is_and_is_named(tmp_path):
    (tmp_path / "my.tiktoken").write_bytes(os.urandom(600_000))
    job = TokenizeJob(input=("/t",), output="/o", tokenizer=TokenizerSettings(name=f"{tmp_path}/my.tiktoken"))
    package = package_of(job, tmp_path)
    assert package.settings["tokenizer"]["name"] == f"{tmp_path}/my.tiktoken"
    assert package.left == [f"{tmp_path}/my.tiktoken (600,000 bytes)"]
    assert package_of(TokenizeJob(input=("/t",), output="/o"), tmp_path).settings["tokenizer"]["name"] == "gpt2"


def test_every_job_that_can_be_submitted_reads_back_the_settings_it_was_sent_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = {
        TokenizeJob: {"input": ["/t"], "output": "/o"},
        PretrainJob: {"corpus": "/c", "output": "/o"},
        PipelineJob: {
            "output": "/o",
            "tokenize": {"input": ["/t"], "validation_fraction": 0.1},
            "generate": {"prompts": ["/p"]},
        },
    }
    for model, values in examples.items():
        job = model.model_validate_json(json.dumps(values))
        Path(SETTINGS_FILE).write_text(json.dumps(package_of(job, tmp_path).settings, indent=2))
        assert load(model, ["--config", SETTINGS_FILE], "herd") == job


def test_code_above_a_megabyte_is_refused_with_the_largest_file(tmp_path):
    package = package_of(TokenizeJob(input=("/t",), output="/o"), tmp_path)
    (tmp_path / "big").write_bytes(os.urandom(1_000_000))
    package.files["gpt_core/big"] = tmp_path / "big"
    with pytest.raises(ResourceError, match=f"the largest file {tmp_path}/big; expected at most 1,000,000"):
        package.zipped()


# --- following


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("cluster.submission.follower._RETRY_SECONDS", 0.0)
    monkeypatch.setattr("cluster.submission.follower._POLL_SECONDS", 0.001)


def test_rays_own_lines_before_the_jobs_first_are_left_out(capsys):
    preamble = "2026-01-01\tINFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job x: y\n"
    head = FakeHead([[preamble + "one\ntw", "o\nRunning entrypoint for job x: y\nend"]], [state("SUCCEEDED", 0)])
    Follower(head, "job-1").run()
    assert capsys.readouterr().out == "one\ntwo\nRunning entrypoint for job x: y\nend\n"


def test_a_lost_stream_is_taken_up_again_and_no_line_shown_twice(capsys):
    streams = [["one\ntw", RuntimeError("closed")], ["one\n", "two\nthree\n"]]
    head = FakeHead(streams, [state("RUNNING"), state("SUCCEEDED", 0)])
    assert Follower(head, "job-1").run().status == "SUCCEEDED"
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_a_silent_head_is_asked_again_for_minutes_and_then_the_job_is_told_to_go_on(monkeypatch, capsys):
    silent = HeadSilentError("head", "no answer (connection refused)", "a head", "check")
    head = FakeHead([], [silent, silent, state("SUCCEEDED", 0)])
    assert Follower(head, "job-1").run().status == "SUCCEEDED"
    monkeypatch.setattr("cluster.submission.follower._PATIENCE_SECONDS", -1.0)
    with pytest.raises(RunFailedError) as caught:
        Follower(FakeHead([], [silent]), "job-1").run()
    assert "herd jobs logs job-1 --follow --cluster.address http://head:8265" in str(caught.value)


def test_lines_are_shown_without_a_stream_of_them_and_why_is_said_once(capsys):
    refused = RuntimeError("400, message='Invalid response status'")
    head = FakeHead([[refused]] * 9, [state("RUNNING"), state("RUNNING"), state("SUCCEEDED", 0)])
    texts = iter(("one\ntw", "one\ntwo\n", "one\ntwo\nend"))
    head.logs = lambda job_id: next(texts)
    assert Follower(head, "job-1").run().status == "SUCCEEDED"
    shown = capsys.readouterr()
    assert shown.out == "one\ntwo\nend\n"
    assert shown.err.count("job-1: no stream of its lines (400, message='Invalid response status')") == 1


def test_the_reason_a_job_waits_is_said_once(monkeypatch, capsys):
    async def endless(job_id: str) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    head = FakeHead([], [*[state("PENDING", message="waits for CPUs")] * 3, state("STOPPED")])
    monkeypatch.setattr(head, "tail", endless)
    monkeypatch.setattr("cluster.submission.follower._LAST_LINES_SECONDS", 0.001)
    assert Follower(head, "job-1").run().status == "STOPPED"
    assert capsys.readouterr().err == "job-1: waits for CPUs\n"


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [
        (state("SUCCEEDED", 0), 0, ""),
        (state("FAILED", 2), 2, "job-1 failed with exit code 2\n"),
        (state("FAILED", -9), 1, "job-1 failed with exit code -9\n"),
        (state("FAILED", None, "The driver's node died\nmore"), 1, "job-1 failed: The driver's node died\n"),
        (state("STOPPED"), 130, "job-1 was stopped; submit it again to continue\n"),
        (
            state("FAILED", 127),
            127,
            "job-1 failed with exit code 127; the cluster's PATH has no Python with Ray: "
            "put its environment on PATH before `ray start`\n",
        ),
        (
            state("FAILED", 1, "ModuleNotFoundError: No module named 'tiktoken'"),
            1,
            "job-1 failed with exit code 1; install the project's dependencies on the cluster (constraints.txt)\n",
        ),
    ],
)
def test_the_exit_code_is_the_jobs_own(ended, code, said, capsys):
    assert submitting.exit_code_of(ended) == code
    assert capsys.readouterr().err == said


# --- Ctrl-C


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "code", "stopped"),
    [("s\n", 130, True), ("d\n", 0, False), ("\n", None, False), ("", 0, False)],
    ids=["stop", "detach", "follow on", "end of input"],
)
def test_ctrl_c_on_a_terminal_does_what_is_answered(typed, code, stopped, monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    monkeypatch.setattr("sys.stderr", Terminal())
    head = FakeHead([], [state("RUNNING")])
    assert submitting._after_interrupt(head, "job-1") == code
    assert head.stopped == stopped


def test_ctrl_c_without_a_terminal_leaves_the_job(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("s\n"))
    head = FakeHead([], [state("RUNNING")])
    assert submitting._after_interrupt(head, "job-1") == 130
    assert not head.stopped
    assert (
        "job-1 goes on; stop it with herd jobs stop job-1 --cluster.address http://head:8265" in capsys.readouterr().err
    )


# --- commands


def test_submit_knows_the_jobs_that_run_on_a_cluster_and_no_others(capsys):
    assert submit.command(["--help"]) == 0
    jobs = capsys.readouterr().out.split("one of: ")[1].splitlines()[0].split(", ")
    assert {"tokenize", "pretrain", "evaluate", "generate", "pipeline"} <= set(jobs)
    assert not {"submit", "jobs"} & set(jobs)


def test_mistakes_of_a_submitted_job_are_all_told_before_anything_is_sent(capsys):
    code = cli.main(["submit", "tokenize", "--shard_bytes", "many", "--inptu", "x", "--cluster.address", "auto"])
    assert code == 2
    told = capsys.readouterr().err
    assert "--shard_bytes: found" in told
    assert "--inptu: found no such setting" in told
    assert "output: found nothing" in told


@pytest.mark.parametrize("words", [[], ["tokenise"], ["submit"]])
def test_submit_without_a_job_names_the_jobs(words, capsys):
    assert cli.main(["submit", *words]) == 2
    assert "expected one of pipeline, tokenize, " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["stop"], ["status", "a", "b"], ["remove", "a"]])
def test_jobs_says_what_it_can_do(words, capsys):
    assert cli.main(["jobs", *words]) == 2
    assert "expected list, status ID, logs ID or stop ID" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("num_cpus", 2), ("object_store_bytes", 100_000_000)])
def test_settings_of_a_ray_of_the_job_s_own_make_no_sense_on_a_cluster(name, value):
    cluster = ClusterSettings(address="http://head:8265", **{name: value})
    job = TokenizeJob(input=("/t",), output="/o", cluster=cluster)
    with pytest.raises(ResourceError, match=rf"cluster.{name}: found {value}; expected none on a cluster"):
        submitting.submit("tokenize", "tokenize_corpus", job, detach=False)


def test_a_tracking_address_is_passed_on_unless_it_holds_a_password(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert submitting._tracking_address() == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    assert submitting._tracking_address() == {}
    assert "secret" not in capsys.readouterr().err


def test_the_table_of_jobs_has_a_line_a_job():
    jobs = [
        JobState("tokenize-1", "SUCCEEDED", "", 0, 1000.0, 1063.4, {"output": "/o"}),
        JobState("x", "PENDING", "", None, None, None, {}),
    ]
    lines = submitted._table(jobs).splitlines()
    assert lines[0].split() == ["job", "status", "started", "took", "output"]
    assert lines[1].startswith("tokenize-1  SUCCEEDED  ")
    assert lines[1].endswith("63 s  /o")
    assert lines[2] == "x           PENDING"
    assert submitted._table([]) == "no jobs"
