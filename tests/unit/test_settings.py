"""What the jobs' settings refuse before a job begins, and where the message says the mistake is."""

from pathlib import Path

import pytest

from gpt_core.settings import (
    AnatomySettings,
    ClusterSettings,
    ExportSettings,
    FinetuneJob,
    GenerateJob,
    ImportSettings,
    PipelineJob,
    PlanSettings,
    PretrainJob,
    TokenizeJob,
    TraceSettings,
)
from jobs.command_line.loader import load
from jobs.command_line.mistakes import SettingsMistakesError

PRETRAIN = ["--corpus", "c", "--output", "o"]
GENERATE = ["--checkpoint", "c", "--prompts", "p.txt", "--output", "o"]
PIPELINE = [
    "--output", "o", "--tokenize.input", "text", "--generate.prompts", "p.txt", "--tokenize.validation_fraction", "0.1"
]  # fmt: skip


def mistakes(model: type, argv: list[str]) -> list[str]:
    with pytest.raises(SettingsMistakesError) as caught:
        load(model, argv, "herd job")
    *lines, last = str(caught.value).splitlines()
    assert last == "herd job --help explains every setting"
    return lines


@pytest.mark.parametrize(
    ("model", "argv", "name"),
    [
        (ExportSettings, ["--checkpoint", "s3://b/run", "--output", "s3://b/hf"], "output"),
        (ImportSettings, ["--model", "s3://b/hf", "--output", "s3://b/run"], "model"),
        (PretrainJob, [*PRETRAIN, "--train.cache_folder", "s3://b/cache"], "train.cache_folder"),
        (PretrainJob, [*PRETRAIN, "--train.work_folder", "gs://b/work"], "train.work_folder"),
    ],
)
def test_what_must_lie_on_a_disk_is_no_url(model, argv, name):
    (line,) = mistakes(model, argv)
    assert name in line
    assert "expected a place on a disk" in line


def test_a_vocabulary_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.tiktoken").touch()
    argv = ["--model", "hf", "--output", "o", "--tokenizer"]
    assert load(ImportSettings, [*argv, "~/own.tiktoken"], "herd import").tokenizer == f"{tmp_path}/own.tiktoken"
    assert load(ImportSettings, [*argv, "gpt2"], "herd import").tokenizer == "gpt2"


def test_numbers_that_make_no_model_are_told_all_at_once_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pretrain.yaml").write_text(
        "corpus: c\noutput: o\nmodel:\n  n_embd: 384\n  n_head: 5\n"
        "recipe: {warmup_tokens: 20, decay_tokens: 10}\n"
        "train:\n  ramp_start_sequences: 24\n  ramp_tokens: 9\n"
    )
    assert mistakes(PretrainJob, ["--config", "pretrain.yaml"]) == [
        "pretrain.yaml:5: model.n_head: found 5 heads, which do not divide n_embd 384; "
        "expected a divisor of n_embd; try 4",
        "pretrain.yaml:6: recipe.warmup_tokens: found 20; expected at most decay_tokens, 10; "
        "shorten the warm-up or lengthen the decay",
        "pretrain.yaml:8: train.ramp_start_sequences: found a start of 6 micro-batches; "
        "expected 128 (the full batch) divided by 1, 2, 4, ...; choose one of these",
    ]


_WORKERS = "expected a whole number > 0 or a list of 2 whole numbers; the default is 1"


@pytest.mark.parametrize(
    ("words", "report"),
    [
        ("--train.context_tokens 99999", ": found 99999; expected at most the model's num_positions, 1024; "),
        ("--train.sharding full", ": found full with reduction exact; expected reduction fast"),
        (
            "--train.sharding full --train.reduction fast --recipe.optimizer muon",
            ": found full with recipe.optimizer muon; expected adamw",
        ),
        ("--train.ramp_tokens 9", ": train: ramp_tokens 9 without ramp_start_sequences; give both or neither"),
        ("--train.ramp_start_sequences 4", ": train: ramp_start_sequences 4 without ramp_tokens; give both or neither"),
        (
            "--train.ramp_start_sequences 6 --train.ramp_tokens 9",
            ": train: micro_batch_sequences 4 does not divide ramp_start_sequences 6",
        ),
        ("--recipe.beta1 1", ": found 1; expected a number >= 0 and < 1; the default is 0.9"),
        ("--recipe.beta2 1.0", ": found 1.0; expected a number >= 0 and < 1; the default is 0.95"),
        ("--train.num_workers []", f": found the list []; {_WORKERS}"),
        ("--train.num_workers [a,b]", f": found the list ['a', 'b']; {_WORKERS}"),
    ],
)
def test_training_settings_that_do_not_fit_are_refused(words, report):
    (line,) = mistakes(PretrainJob, [*PRETRAIN, *words.split()])
    assert line.startswith("--")
    assert report in line


def test_an_empty_place_is_no_place():
    assert mistakes(PretrainJob, ["--corpus", "c", "--output", ""]) == [
        "--output: found the text ''; expected a non-empty text; give such a value"
    ]
    assert len(mistakes(TokenizeJob, ["--input", "", "--output", ""])) == 2
    assert len(mistakes(TraceSettings, ["--corpus", "", "--document", "train/00000000.arrow:0"])) == 1
    assert len(mistakes(PipelineJob, [*PIPELINE[2:], "--output", ""])) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sampling.num_samples", "1025"], "a whole number > 0 and <= 1024"),
        (["--sampling.logprobs", "1025"], "a whole number >= 0 and <= 1024 or null"),
        (["--sampling.seed", str(2**63)], "a whole number >= 0 and < 9223372036854775808"),
        (["--sampling.repetition_penalty", "101"], "<= 100.0 or null"),
        (["--sampling.repetition_penalty", "1e-9"], ">= 0.001 and"),
        (["--sampling.temperature", "1e31"], "<= 1e+30"),
        (["--sampling.temperature", "1e-31"], "too near 0 to divide by"),
        (["--sampling.stop", ""], "a non-empty text"),
    ],
)
def test_sampling_settings_have_the_limits_of_the_engine(words, expected):
    (line,) = mistakes(GenerateJob, [*GENERATE, *words])
    assert line.startswith(words[0])
    assert expected in line


def test_the_largest_sampling_settings_reach_the_engine():
    from cluster.generating import sampling_of

    words = ["num_samples", "1024", "logprobs", "1024", "repetition_penalty", "100", "seed", str(2**63 - 1)]
    flags = [f"--sampling.{word}" if word.isidentifier() else word for word in words]
    sampling = sampling_of(load(GenerateJob, [*GENERATE, *flags]).sampling)
    assert (sampling.n, sampling.logprobs, sampling.seed) == (1024, 1024, 2**63 - 1)


def test_a_mapping_keeps_the_defaults_of_its_section():
    assert load(GenerateJob, [*GENERATE, "--pool", "{max_actors: 3}"]).pool.cpus_per_actor == 0.1


def test_a_pipeline_gives_each_stage_what_the_stages_before_make():
    job = load(PipelineJob, PIPELINE)
    folder = Path("o").absolute()
    assert (job.pretrain.corpus, job.evaluate.corpus) == (f"{folder}/corpus", f"{folder}/corpus")
    assert (job.generate.checkpoint, job.generate.output) == (f"{folder}/model", f"{folder}/generated")


def test_a_pipeline_may_measure_tasks_alone():
    job = load(PipelineJob, [*PIPELINE, "--evaluate.corpus", "null", "--evaluate.tasks", "text=wiki.txt"])
    assert job.evaluate.corpus is None
    assert mistakes(PipelineJob, [*PIPELINE, "--evaluate.corpus", "null"]) == [
        "--evaluate.corpus: evaluate: neither corpus nor tasks given; give a corpus, or tasks as KIND=FILE, or both"
    ]


def test_a_pipeline_that_holds_nothing_out_has_nothing_to_measure():
    (line,) = mistakes(PipelineJob, PIPELINE[:-2])
    assert line.startswith("herd job: evaluate.split: found validation, and tokenize.validation_fraction is 0; ")
    assert load(PipelineJob, [*PIPELINE[:-2], "--evaluate.split", "train"]).evaluate.split == "train"
    assert load(PipelineJob, [*PIPELINE[:-2], "--tokenize.validation_tail", "0.1"]).tokenize.validation_tail == 0.1


def test_a_pipeline_measures_no_longer_context_than_its_model_has():
    (line,) = mistakes(PipelineJob, [*PIPELINE, "--evaluate.context_tokens", "99999"])
    assert line.startswith("--evaluate.context_tokens: found 99999; expected at most the model's num_positions, 1024")


def test_a_plan_takes_heads_that_divide_the_width_of_its_preset():
    assert load(PlanSettings, ["--model.n_head", "128"]).model.n_head == 128
    (line,) = mistakes(PlanSettings, ["--model.n_head", "100"])
    assert line.startswith("--model.n_head: found 100 heads, which do not divide n_embd 12288; ")
    (line,) = mistakes(AnatomySettings, ["--preset", "gpt2-xl", "--model.n_head", "12"])
    assert line.startswith("--model.n_head: found 12 heads, which do not divide n_embd 1600; ")


def test_fine_tuning_has_the_ramp_and_the_limits_of_pretraining():
    words = ["--checkpoint", "c", "--examples", "e.jsonl", "--task", "plain", "--output", "o"]
    assert len(mistakes(FinetuneJob, [*words, "--train.sharding", "full", "--recipe.beta2", "1"])) == 2
    (line,) = mistakes(FinetuneJob, [*words, "--train.sharding", "full", "--train.reduction", "fast"])
    assert line.startswith("--train.sharding: found full; expected none or optimizer, which tell targets from prompts")
    (line,) = mistakes(FinetuneJob, [*words, "--validation_fraction", "0"])
    assert line.startswith("--validation_fraction: found 0 with train.patience_evaluations; expected held-out examples")


def test_a_ray_of_the_jobs_own_takes_no_settings_together_with_an_address(monkeypatch):
    from cluster.session import address_of
    from gpt_core.errors import ResourceError

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_of(ClusterSettings(num_cpus=2, object_store_bytes=100_000_000)) is None
    with pytest.raises(ResourceError, match=r"^cluster.num_cpus: found 2; .* cluster.address is auto; leave out one"):
        address_of(ClusterSettings(address="auto", num_cpus=2))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ResourceError, match=r"object_store_bytes: .* environment variable RAY_ADDRESS is 10.0.0.1"):
        address_of(ClusterSettings(object_store_bytes=100_000_000))
    assert address_of(ClusterSettings()) == "10.0.0.1:6379"
