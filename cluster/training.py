"""`herd pretrain`: the training loop of ``gpt_core`` on the workers of Ray Train.

Ray Train places the workers and connects them, ``cluster.fitting`` starts them again when one is
lost, and the loop finds its own newest whole checkpoint. Rank 0 writes metrics to a journal in the run's folder and
the driver carries them to MLflow.
"""

import contextlib
import socket
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.fitting import STOP, Fitting
from cluster.progress import Meter, meter, say
from cluster.recording.journal import Journal, Tail, read_all
from cluster.recording.journal_copy import take_up_journal, upload_journal
from cluster.recording.predicting import Foretold, record_comparison, write_expectation
from cluster.recording.record_book import Run
from cluster.registering import is_registered, register
from cluster.session import Cluster
from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import Manifest
from gpt_core.errors import ResourceError, StaleOutputError
from gpt_core.finetuning.supervised_corpus import open_corpus
from gpt_core.model.presets import ModelShape
from gpt_core.settings import FinetuneSettings, PretrainSettings, TrainSettings
from gpt_core.sole_writer import sole_writer
from gpt_core.storage import Location, is_url, local_folder
from gpt_core.training import begun, checkpoint
from gpt_core.training.checkpoint import Description
from gpt_core.training.early_stopping import BEST_LOSS, VALIDATION_LOSS
from gpt_core.training.observer import Silence
from gpt_core.training.schedule import Recipe
from gpt_core.training.training_plan import TrainingPlan, allowed_ranks, check_vocabulary, told_schedule

if TYPE_CHECKING:
    from cluster.recording.training_gauges import TrainingGauges

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
_LOCK = ".job"
_LOCK_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a training run is about, resolved."""

    plan: TrainingPlan
    corpus: Manifest


@dataclass(frozen=True, slots=True)
class Trained:
    """What a finished run made; losses in nats a token."""

    checkpoint: Location
    weights_digest: str
    num_parameters: int
    num_steps: int
    tokens_trained: int
    untrained_loss: float
    training_loss: float
    validation_loss: float | None
    """The last step's, the best where that was not evaluated; None where nothing was held out."""


def resolve(settings: PretrainSettings) -> Inputs:
    """Open the corpus and turn the settings into a plan, with every check that costs no cluster time.

    Raises:
        CorpusError: If the corpus is not finished or smaller than a batch.
        SettingsError: If model, context, batch or vocabulary do not fit together.
        CheckpointError: If the output folder holds a run with other settings.
    """
    corpus = manifest.read(settings.corpus)
    shape = settings.model.shape(corpus.tokenizer.vocabulary_size)
    check_vocabulary(shape, corpus.tokenizer.name, corpus.tokenizer.vocabulary_size)
    plan = plan_of(settings, settings.corpus, shape)
    open_corpus(plan.corpus).order(plan.seed, plan.window_tokens, plan.batch_sequences, None, plan.block_windows)
    check_records(plan)
    check_begun("pretrain", plan, corpus.root_digest)
    return Inputs(plan, corpus)


def plan_of(settings: PretrainSettings | FinetuneSettings, corpus: str, shape: ModelShape) -> TrainingPlan:
    """Return the plan of a run over a corpus, as its settings say.

    Raises:
        SettingsError: If model, context and batch do not fit together.
    """
    train = settings.train
    plan = TrainingPlan(
        corpus=corpus,
        output=settings.output,
        shape=shape,
        num_steps=train.num_steps,
        window_tokens=train.context_tokens or shape.num_positions,
        batch_sequences=train.batch_sequences,
        micro_batch_sequences=train.micro_batch_sequences,
        recipe=Recipe(**settings.recipe.model_dump()),
        seed=train.seed,
        block_windows=train.block_windows,
        cache_bytes=train.cache_bytes,
        cache_folder=train.cache_folder,
        ramp_start_sequences=train.ramp_start_sequences,
        ramp_tokens=train.ramp_tokens,
        max_loss_rise=train.max_loss_rise,
        compiled=train.compiled,
        reduction=train.reduction,
        sharding=train.sharding,
        activation_checkpointing=train.activation_checkpointing,
        device="gpu" if train.device == "gpu" else "cpu",
        precision=train.precision,
        num_threads=train.threads_per_worker,
        checkpoint_every_steps=train.checkpoint_every_steps,
        checkpoint_every_seconds=train.checkpoint_every_seconds,
        keep_checkpoints=train.keep_checkpoints,
        evaluate_every_steps=train.evaluate_every_steps,
        evaluate_sequences=train.evaluate_sequences,
        sample_every_steps=train.sample_every_steps,
        sample_prompts=train.sample_prompts,
        work_folder=str(local_folder(settings.output, train.work_folder)) if is_url(settings.output) else None,
        settings=settings.model_dump(mode="json", exclude={"cluster", "tracking"}),
    )
    return plan if train.num_tokens is None else replace(plan, num_steps=plan.steps_for(train.num_tokens))


def check_records(plan: TrainingPlan) -> None:
    """Refuse to go on with the journal of a run that is gone from its URL.

    Raises:
        StaleOutputError: If the run's local folder has one and nothing is begun at the URL.
    """
    if is_url(plan.output) and (plan.folder / METRICS).exists() and begun.read(plan.output) is None:
        raise StaleOutputError(
            plan.output, f"nothing, and records of an earlier run in {plan.folder}", "both or neither",
            "delete that folder, or choose another output",
        )  # fmt: skip


def check_begun(title: str, plan: TrainingPlan, corpus_digest: str | None) -> Description | None:
    """Return the newest whole checkpoint in the plan's output folder, and say which were passed over.

    Raises:
        CheckpointError: If the folder is of a run with another plan or corpus.
    """
    newest, damage = newest_whole(plan.output)
    for sentence in damage:
        say(f"{title}: {sentence}")
    begun.check(begun.Begun(corpus_digest, plan), newest)
    return newest


def finished(settings: PretrainSettings, inputs: Inputs) -> Trained | None:
    """Return the run in the output folder if it has reached its last step, None if not."""
    newest, _ = newest_whole(settings.output)
    if newest is None or newest.step < inputs.plan.num_steps:
        return None
    trained = _summary(settings.output)
    if settings.register and not is_registered(settings.register, trained.checkpoint.name, inputs.plan.folder):
        return None
    return trained


def perform(settings: PretrainSettings, inputs: Inputs, cluster: Cluster, run: Run) -> Trained:
    """Train to the plan's last step, through failures, and return what was made."""
    fit("pretrain", settings.train, inputs, cluster, run)
    trained = _summary(settings.output)
    record(run, settings, inputs, trained)
    return trained


def record(run: Run, settings: PretrainSettings, inputs: Inputs, trained: Trained) -> None:
    """Record the run's checkpoints and how it went, and register the newest one where that is asked for."""
    record_checkpoints("pretrain", run, inputs.plan, trained.weights_digest)
    if settings.register:
        register("pretrain", run, settings.register, trained.checkpoint, inputs.plan.folder)


def fit(title: str, train: TrainSettings, inputs: Inputs, cluster: Cluster, run: Run) -> None:
    """Train until the plan is over, on the workers of Ray Train; the metrics go to the run."""
    cluster.require_cpus(
        train.fewest_workers * train.threads_per_worker, "train.num_workers x train.threads_per_worker"
    )
    if train.device == "gpu" and cluster.address is None:  # no node will come
        cluster.require_gpus(train.fewest_workers, "train.num_workers with train.device gpu")
    uses_gpus = train.device == "gpu" or (train.device == "auto" and cluster.num_gpus >= train.fewest_workers)
    plan = replace(inputs.plan, device="gpu" if uses_gpus else "cpu")
    counts = allowed_ranks(plan, train.fewest_workers, train.most_workers)
    if cluster.address is None and plan.precision == "bf16":
        _check_precision(plan)
    folder = plan.folder
    for told in filter(None, (begun.told_rounding(plan), told_schedule(plan))):
        say(f"{title}: {told}")
    run.log_dataset(
        "corpus/train", inputs.corpus.root_digest, plan.corpus, context="training",
        profile={"num_tokens": inputs.corpus.splits["train"].num_tokens},
    )  # fmt: skip
    run.follow(folder / METRICS)
    with sole_writer(folder, _LOCK, _LOCK_PATIENCE_SECONDS), meter(title, plan.num_steps, "steps") as shown:
        if is_url(plan.output):
            for name in (METRICS, SAMPLES):
                take_up_journal(folder / name, plan.output)
        followed = _Followed(folder / METRICS, shown, Foretold(title, folder))
        Fitting(title, plan, _work, counts, train.max_failures, followed.show, train.max_seconds).run()


def _check_precision(plan: TrainingPlan) -> None:
    """Refuse bf16 where this machine, which is all of the cluster, cannot compute in it."""
    import torch  # here, for it takes two seconds

    from gpt_core.model.precision import choose_dtype

    choose_dtype(plan.precision, torch.device("cuda" if plan.device == "gpu" else "cpu"))


def _work(config: dict[str, Any]) -> None:
    """Run one rank; called by Ray Train in each worker."""
    import ray.train

    from gpt_core.training.loop import train
    from gpt_core.training.reduction import Ranks

    context = ray.train.get_context()
    plan = TrainingPlan.from_dict(config["plan"])
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    _check_folder(plan.folder)
    with contextlib.closing(_Reporter(plan, ranks.rank, ranks.num_ranks)) as reporter:
        train(plan, ranks, reporter)


def _check_folder(folder: Path) -> None:
    """Raise ResourceError where this worker does not see the folder in which the driver holds its lock."""
    if not (folder / _LOCK).exists():
        raise ResourceError(
            str(folder), f"nothing of this run on {socket.gethostname()}", "a folder that all nodes share",
            "write to one; where the output is a URL, set train.work_folder to one",
        )  # fmt: skip


class _Reporter(Silence):
    """Takes what the loop observes: metrics to the journal on rank 0, the driver's wish to stop to all."""

    def __init__(self, plan: TrainingPlan, rank: int, num_ranks: int = 1) -> None:
        self._output = plan.output
        self._folder = plan.folder
        self._is_first = rank == 0
        self._num_ranks = num_ranks
        self._journals: dict[str, Journal] = {}
        self._gauges: TrainingGauges | None = None
        self._stop = plan.folder / STOP

    def on_start(self, plan: TrainingPlan, flops_a_second: float | None) -> None:
        if flops_a_second is not None:
            write_expectation(plan, self._num_ranks, flops_a_second)

    def on_metrics(self, step: int, tokens: int, metrics: dict[str, float]) -> None:
        if self._is_first:
            self._journal(METRICS).append_metrics(metrics, step=step, tokens=tokens)
            self._show(step, metrics)

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        self._journal(SAMPLES).append({"step": step, "prompt": prompt, "text": text})

    def before_checkpoint(self) -> None:
        for journal in self._journals.values():
            journal.sync()
            if is_url(self._output):
                upload_journal(journal.path, self._output)

    def _journal(self, name: str) -> Journal:
        """Return a journal, opened as late as when it is needed: no earlier worker can be at it any more."""
        if name not in self._journals:
            self._journals[name] = Journal(self._folder / name)
        return self._journals[name]

    def _show(self, step: int, metrics: dict[str, float]) -> None:
        from cluster.recording.training_gauges import TrainingGauges  # here, so that the driver starts without ray

        self._gauges = self._gauges or TrainingGauges()
        self._gauges.show(step, metrics)

    def should_stop(self) -> bool:
        return self._stop.exists()

    def close(self) -> None:
        for journal in self._journals.values():
            journal.close()


class _Followed:
    """What is expected of the run, said once, and the metrics journal as it grows, shown as progress."""

    def __init__(self, journal: Path, shown: Meter, foretold: Foretold) -> None:
        self._tail, self._shown, self._foretold = Tail(journal), shown, foretold
        while self._tail.read():  # what an earlier start wrote
            pass

    def show(self) -> bool:
        """Show the newest step, if there is one that was not shown yet."""
        self._foretold.tell()
        records = self._tail.read()
        if not records:
            return False
        metrics = records[-1]["metrics"]
        facts = f"loss {float(metrics['loss']):.3f}, {float(metrics['tokens_per_second']):,.0f} tokens/s"
        self._shown.show(records[-1]["step"], facts)
        return True


def newest_whole(output: str) -> tuple[Description | None, list[str]]:
    """Return the newest whole checkpoint's description, and what is wrong with those passed over."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        newest = checkpoint.load_newest(output)
    return newest.description if newest else None, [str(warning.message) for warning in caught]


def _summary(output: str) -> Trained:
    newest = checkpoint.load(output)
    description = newest.description
    return Trained(
        checkpoint=newest.path,
        weights_digest=checkpoint.weights_digest(newest.path),
        num_parameters=newest.shape.num_parameters,
        num_steps=newest.step,
        tokens_trained=description.tokens,
        untrained_loss=newest.shape.untrained_loss,
        training_loss=description.metrics["loss"],
        # The last step is evaluated, unless num_steps was lowered to one at which the run had been stopped.
        validation_loss=description.metrics.get(VALIDATION_LOSS, description.metrics.get(BEST_LOSS)),
    )


def record_checkpoints(title: str, run: Run, plan: TrainingPlan, weights_digest: str) -> None:
    """Record every checkpoint of the output folder, which one the run made, what it reached and its losses' curves."""
    paths = checkpoint.list_paths(plan.output)
    record_comparison(title, run, plan, plan.folder / METRICS, paths[-1])
    for path in paths:
        found = checkpoint.read_description(path)
        digest = checkpoint.weights_digest(path)
        chosen = {name: value for name, value in found.metrics.items() if name in ("loss", "validation_loss")}
        tags = {"herd.checkpoint": digest, "herd.corpus": found.corpus_digest or "", "path": str(path)}
        run.log_model(path.name, step=found.step, metrics=chosen, tags=tags)
    run.set_tags({"herd.checkpoint": weights_digest})
    if rows := samples_of(plan.folder):
        run.log_table(rows, "samples.json")
    run.log_loss_plot()


def samples_of(folder: Path) -> list[dict[str, Any]]:
    """Return what a run's model wrote, in the order of its steps; of a step taken again the last counts."""
    if not (folder / SAMPLES).exists():
        return []
    found = {(row["step"], row["prompt"]): row for row in read_all(folder / SAMPLES)}
    return [found[key] for key in sorted(found)]
