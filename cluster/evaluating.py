"""`herd evaluate`: a checkpoint and a corpus, or tasks, to loss, perplexity, bits per byte and scores."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.recording.record_book import Run
from cluster.session import Cluster
from cluster.shard_job import ShardJob, run_shard_job
from cluster.stages import REJECTS, log_output, made_already, write_rejects
from gpt_core import sealed_json
from gpt_core.corpus import manifest
from gpt_core.corpus.corpus import Corpus
from gpt_core.counted import counted
from gpt_core.digests import canonical_json, sha256_hex
from gpt_core.documents.source_files import SourceFile
from gpt_core.errors import CheckpointError, CorpusError, SettingsError
from gpt_core.evaluation.evaluation import CorpusPart, EvaluationWorker, Measured, WindowRange, plan_windows, summed
from gpt_core.evaluation.task_items import Wording
from gpt_core.evaluation.task_plan import (
    Cut,
    SetAside,
    Task,
    TaskPlan,
    list_task_files,
    nothing_to_score,
    plan_task,
    settings_of,
    sliding_of,
)
from gpt_core.evaluation.task_scorer import Tasks, added, metrics_of
from gpt_core.finetuning.supervised_corpus import PACKED, open_corpus
from gpt_core.ledger import Row
from gpt_core.settings import EvaluateSettings, TaskSettings
from gpt_core.storage import Storage
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Checkpoint

RESULT = "evaluation.json"
_SHARD_COLUMNS = ("path", "num_rows", "xxh3_128")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an evaluation is about, resolved: checkpoint, tasks, and the settings that decide the result."""

    checkpoint: Checkpoint
    window_tokens: int
    tasks: tuple[Task, ...]
    files: tuple[tuple[SourceFile, ...], ...]
    windows: Sequence[WindowRange]
    decisive: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A task's metrics, as ``gpt_core.evaluation.task_scorer.metrics_of`` names them."""

    name: str
    kind: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation found: the corpus's numbers, where one was given, the tasks', and the rows set aside."""

    corpus: Measured | None
    tasks: tuple[TaskResult, ...] = ()
    num_rejects: int = 0

    def lines(self) -> list[str]:
        """Return the result for people, a line a task."""
        lines = []
        if measured := self.corpus:
            lines.append(
                f"loss {measured.loss:.4f}, perplexity {measured.perplexity:.2f}, "
                f"{measured.bits_per_byte:.4f} bits per byte on {measured.num_tokens:,} tokens of the corpus"
            )
        lines += [f"{task.name} ({task.kind}): {_told(task.metrics)}" for task in self.tasks]
        return lines + ([f"{counted(self.num_rejects, 'row')} set aside in {REJECTS}"] if self.num_rejects else [])


def _told(metrics: dict[str, float]) -> str:
    told = []
    for name, value in metrics.items():
        if name.startswith("num_"):
            told.append(f"{value:,.0f} {name.removeprefix('num_')}")
        elif not name.endswith("_stderr"):
            error = metrics.get(f"{name}_stderr")
            told.append(f"{name} {value:.4f}" + ("" if error is None else f" +- {error:.4f}"))
    return ", ".join(told)


def resolve(settings: EvaluateSettings) -> Inputs:
    """Find the checkpoint, the corpus and the tasks' files and check that they fit.

    Raises:
        CheckpointError: If there is no whole checkpoint, or its context is too short.
        CorpusError: If the corpus is not finished, of another vocabulary, without the split or with less than a window
            in it, or a task's file is missing.
        SettingsError: If a task's stride exceeds the context, or the context is not that of packed examples.
    """
    loaded = checkpoint.load(settings.checkpoint)
    window_tokens = _window_tokens(settings, loaded)
    tasks, files = tasks_of(settings, window_tokens)
    decisive = {
        "checkpoint": checkpoint.weights_digest(loaded.path),
        "context_tokens": window_tokens,
        "windows_per_shard": settings.windows_per_shard,
        "batch_sequences": settings.batch_sequences,
        **(_decisive_of_corpus(settings, loaded) if settings.corpus else {}),
    }
    if tasks:
        decisive["tasks"] = {task.name: settings_of(task, own) for task, own in zip(tasks, files, strict=True)}
    windows = _planned_windows(settings, window_tokens) if settings.corpus else ()
    return Inputs(loaded, window_tokens, tasks, files, windows, decisive)


def tasks_of(
    settings: EvaluateSettings, window_tokens: int
) -> tuple[tuple[Task, ...], tuple[tuple[SourceFile, ...], ...]]:
    """Return the tasks and the files of each; needs no checkpoint.

    Raises:
        CorpusError: If a task has no file, or one of the wrong format.
        SettingsError: If a task's stride exceeds the window.
    """
    tasks = tuple(map(_task, settings.tasks))
    for task in tasks:
        sliding_of(task, window_tokens)
    return tasks, tuple(map(list_task_files, tasks))


def _window_tokens(settings: EvaluateSettings, loaded: Checkpoint) -> int:
    positions = loaded.shape.num_positions
    packed: Any = settings.corpus and manifest.read(settings.corpus).settings.get(PACKED)
    window_tokens = settings.context_tokens or packed or positions
    if packed and window_tokens != packed:
        raise SettingsError(
            "context_tokens", str(window_tokens), f"{packed}, that of the packs of {settings.corpus}", "leave it out"
        )
    if window_tokens > positions:
        raise CheckpointError(
            "context_tokens",
            str(window_tokens),
            f"at most the model's {positions} positions",
            "shorten the context",
        )
    return window_tokens


def _decisive_of_corpus(settings: EvaluateSettings, loaded: Checkpoint) -> dict[str, Any]:
    assert settings.corpus is not None
    corpus = manifest.read(settings.corpus)
    if loaded.tokenizer.get("digest") != corpus.tokenizer.digest:
        raise CorpusError(
            settings.corpus,
            f"a corpus of the vocabulary {corpus.tokenizer.name}",
            f"the checkpoint's vocabulary {loaded.tokenizer.get('name')}",
            "tokenize the text with the checkpoint's vocabulary",
        )
    return {"corpus": corpus.root_digest, "split": settings.split, "max_windows": settings.max_windows}


def _task(task: TaskSettings) -> Task:
    wording = None if task.kind == "text" else Wording(task.kind, task.style, task.blank)
    kept = task.model_dump(include={"kind", "path", "stride_tokens", "num_words", "max_items", "text_field"})
    return Task(name=task.label, wording=wording, **kept)


def finished(settings: EvaluateSettings, inputs: Inputs) -> Evaluated | None:
    """Return the result in the output folder if these settings made it, None if there is none.

    Raises:
        StaleOutputError: If the folder holds another evaluation, naming the first setting that differs.
    """
    found = made_already(settings.output, RESULT, inputs.decisive, "a result for", inputs.checkpoint.path)
    if found is None:
        return None
    measured = Measured(**found["measured"]) if found["measured"] else None
    tasks = [TaskResult(name, task["kind"], task["metrics"]) for name, task in found.get("tasks", {}).items()]
    return Evaluated(measured, tuple(tasks), found.get("num_rejects", 0))


def perform(settings: EvaluateSettings, inputs: Inputs, cluster: Cluster, run: Run) -> Evaluated:
    """Measure, write the items' results and evaluation.json atomically, record them in the run, and return them."""
    cut = Cut(load_tokenizer(inputs.checkpoint.tokenizer["name"]), inputs.window_tokens, settings.windows_per_shard)
    plans = [plan_task(task, index, cut) for index, task in enumerate(inputs.tasks)]
    ledger = run_shard_job(
        _job(settings, inputs, [*inputs.windows, *(cut for plan in plans for cut in plan.ranges)]), cluster
    )
    rows = sorted(ledger.rows(), key=lambda row: row["index"])
    evaluated = _commit(settings, inputs, plans, rows)
    ledger.remove()
    record(run, settings, inputs, evaluated)
    return evaluated


def _planned_windows(settings: EvaluateSettings, window_tokens: int) -> Sequence[WindowRange]:
    assert settings.corpus is not None
    corpus = open_corpus(settings.corpus, settings.split)
    num_windows = corpus.num_windows(window_tokens)
    if num_windows == 0:
        raise CorpusError(
            f"{settings.corpus}, split {settings.split}",
            f"{corpus.num_tokens} tokens",
            f"at least {window_tokens + 1}, one window",
            "hold out more documents, or shorten context_tokens",
        )
    return plan_windows(min(num_windows, settings.max_windows or num_windows), settings.windows_per_shard)


def _job(settings: EvaluateSettings, inputs: Inputs, plans: Sequence[Any]) -> ShardJob:
    corpus = settings.corpus and CorpusPart(settings.corpus, settings.split, inputs.window_tokens)
    tasks = Tasks(settings.output, inputs.tasks, inputs.files, inputs.window_tokens) if inputs.tasks else None
    path, batch_sequences = str(inputs.checkpoint.path), settings.batch_sequences
    return ShardJob(
        title="evaluate",
        folder=settings.output,
        settings=inputs.decisive,
        plans=list(enumerate(plans)),
        make_worker=functools.partial(EvaluationWorker, path, corpus or None, tasks, batch_sequences),
        pool=settings.pool,
    )


def _commit(settings: EvaluateSettings, inputs: Inputs, plans: list[TaskPlan], rows: list[Row]) -> Evaluated:
    """Write the rejects, then evaluation.json; where it stands the evaluation is complete.

    Raises:
        CorpusError: Of a task not one row was scored.
    """
    measured = summed(row for row in rows if "task" not in row) if settings.corpus else None
    rejects = [asdict(reject) for plan in plans for reject in plan.rejects]
    rejects += [reject for row in rows for reject in row.get("refused", ())]
    rejects.sort(key=lambda reject: (reject["task"], reject["file"], reject["line"] or 0))
    write_rejects(settings.output, rejects)
    tasks = {plan.task.name: _task_entry(plan, [row for row in rows if row.get("task") == plan.task.name])
             for plan in plans}  # fmt: skip
    content: dict[str, Any] = {"settings": inputs.decisive, "measured": measured and asdict(measured)}
    if measured:
        content |= {"perplexity": measured.perplexity, "bits_per_byte": measured.bits_per_byte}
    if tasks:
        content |= {"tasks": tasks, "num_rejects": len(rejects)}
    sealed_json.write(Storage.of(settings.output).join(RESULT), content)
    results = tuple(TaskResult(name, task["kind"], task["metrics"]) for name, task in tasks.items())
    return Evaluated(measured, results, len(rejects))


def _task_entry(plan: TaskPlan, rows: list[Row]) -> dict[str, Any]:
    metrics = metrics_of(added(row["sums"] for row in rows), plan.num_words)
    if not metrics:  # workers set rows aside too: those whose continuation is longer than the context
        refused = [SetAside(**reject) for row in rows for reject in row["refused"]]
        raise nothing_to_score(plan.task, [*plan.rejects, *refused])
    return {
        "kind": plan.task.kind,
        "metrics": metrics,
        "items": [{name: row[name] for name in _SHARD_COLUMNS} for row in rows],
    }


def record(run: Run, settings: EvaluateSettings, inputs: Inputs, evaluated: Evaluated) -> None:
    """Record what the evaluation in the output folder found."""
    metrics = {f"{task.name}/{name}": value for task in evaluated.tasks for name, value in task.metrics.items()}
    if measured := evaluated.corpus:
        metrics |= {
            "loss": measured.loss,
            "perplexity": measured.perplexity,
            "bits_per_byte": measured.bits_per_byte,
        }
    run.log_metrics(metrics, step=0)
    run.log_model_input(inputs.decisive["checkpoint"])
    if settings.corpus:
        corpus = Corpus(settings.corpus, settings.split)
        run.log_dataset(
            f"corpus/{settings.split}", corpus.manifest.root_digest, settings.corpus, context="evaluation",
            profile={"num_tokens": corpus.num_tokens},
        )  # fmt: skip
    for task in inputs.tasks:
        digest = sha256_hex([canonical_json(inputs.decisive["tasks"][task.name]["files"])])
        run.log_dataset(task.name, digest, task.path, context=f"task.{task.name}", profile={"kind": task.kind})
    if evaluated.tasks:
        run.log_table(
            [{"task": task.name, "kind": task.kind, **task.metrics} for task in evaluated.tasks], "tasks.json"
        )
    log_output(run, settings.output, RESULT)
