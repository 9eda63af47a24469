"""The training loop: steps, metrics, evaluations, checkpoints, resume.  No cluster library.

Every rank calls ``train`` with the same plan.  Invariant (exact mode): what is logged and what is
saved after step S depends on the plan and the corpus alone, not on the number of ranks, nor on how
often the run was stopped, killed and resumed on the way.
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from gpt_core.corpus.shard_cache import cache_for
from gpt_core.errors import ResourceError, RunFailedError
from gpt_core.finetuning.supervised_corpus import open_corpus
from gpt_core.model.precision import choose_dtype
from gpt_core.sole_writer import sole_writer
from gpt_core.storage import Location
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import begun, checkpoint
from gpt_core.training.begun import Begun
from gpt_core.training.checkpoint import Description
from gpt_core.training.checkpoint_writer import CheckpointWriter
from gpt_core.training.fully_sharded import FullyShardedLearner
from gpt_core.training.held_out import HeldOut
from gpt_core.training.learner import Learner
from gpt_core.training.observer import Metrics, Observer, Silence
from gpt_core.training.prefetch import Prefetcher
from gpt_core.training.reduction import Ranks, add_over_ranks
from gpt_core.training.samples import Samples
from gpt_core.training.schedule import learning_rate_share
from gpt_core.training.starting_weights import load_starting_weights
from gpt_core.training.step import NO_VOTES, Compute, StepReport, Votes
from gpt_core.training.step_metrics import Pace, StepMetrics
from gpt_core.training.step_windows import StepWindows
from gpt_core.training.training_plan import TrainingPlan, check_ranks, check_vocabulary

# A worker outlives its killed driver by about two seconds, or by a checkpoint under way.
LOCK = ".writer"
LOCK_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """How a run ended."""

    step: int
    tokens: int
    metrics: Metrics
    """The last step's, with the last validation_loss."""
    checkpoint: Location | None
    resumed_from: int
    """The step the run began with: 0 for a fresh one."""
    stopped: bool
    """Stopped before the plan's last step, because an observer asked for it."""


def train(plan: TrainingPlan, ranks: Ranks | None = None, observer: Observer | None = None) -> TrainingSummary:
    """Train to the plan's end, from the newest whole checkpoint of its output folder if there is one.

    Sets this process's torch threads and, with dropout, reseeds torch's generator each micro-batch.
    Writes checkpoints under ``plan.output`` on rank 0, each atomically; while it does, no other
    process can train there. Where that is a URL, only those with the same ``plan.folder`` are kept off.

    Raises:
        ResourceError: Another process trains in the output folder and does not end.
        SettingsError: The plan does not fit the corpus or the ranks.
        CorpusError: The corpus is absent, damaged, or smaller than a batch.
        CheckpointError: The output folder holds another run, or cannot be written.
        RunFailedError: The loss spiked or is no number; names the step, rows and last checkpoint.
    """
    run = Run(plan, ranks or Ranks(), observer or Silence())
    alone = sole_writer(plan.folder, LOCK, LOCK_PATIENCE_SECONDS) if run.ranks.rank == 0 else nullcontext()
    with alone:
        run.resume()
        if run.ranks.rank == 0:
            run.observer.on_start(run.plan, run.metrics.find_peak())
        return run.finish()


class Run:
    """One rank's part of a training run."""

    def __init__(self, plan: TrainingPlan, ranks: Ranks, observer: Observer) -> None:
        check_ranks(plan, ranks.num_ranks)
        torch.set_num_threads(plan.num_threads)
        self.plan = plan
        self.ranks = ranks
        self.observer = observer
        cache = cache_for(plan.corpus, plan.cache_folder, plan.cache_bytes)
        self.corpus = open_corpus(plan.corpus, "train", cache)
        tokenizer = self.corpus.manifest.tokenizer
        check_vocabulary(plan.shape, tokenizer.name, tokenizer.vocabulary_size)
        self.windows = StepWindows(plan, ranks, self.corpus)
        self.device = _choose_device(plan)
        # "auto" may mean another dtype elsewhere: what it meant here is what checkpoints remember.
        self.plan = replace(plan, precision=_agreed_precision(plan, self.device, ranks))
        dtype = choose_dtype(self.plan.precision, self.device)
        self.learner = _make_learner(self.plan, self.device, dtype, ranks)
        self.held_out = HeldOut(plan, self.corpus.manifest.splits, ranks, self.device)
        self.writer = CheckpointWriter(plan.output, plan.keep_checkpoints, observer.on_checkpoint)
        self.samples = _samples(plan, tokenizer.name) if ranks.rank == 0 else None
        self.metrics = StepMetrics(plan, self.device, dtype, ranks.num_ranks)
        self.total_tokens = plan.tokens_after(plan.num_steps)
        self.tokens = 0
        self._is_begun = False
        self._next_checkpoint_seconds = time.monotonic() + (plan.checkpoint_every_seconds or math.inf)

    def resume(self, before: int | None = None) -> None:
        """Take up the newest whole checkpoint (of a step below ``before``), or begin at step 0."""
        path = self._agreed_path(before)
        found = checkpoint.load(path) if path else None
        ours = Begun(self.corpus.manifest.root_digest, self.plan)
        begun.check(ours, found.description if found else None)
        if before is None and self.ranks.rank == 0:
            checkpoint.set_aside_after(self.plan.output, found.step if found else 0)
            checkpoint.delete_leftovers(self.plan.output)
        if found is None:
            self._begin()
            return
        self.learner.load_weights(found.weights).load_optimizer_state(found.load_optimizer(), found.step)
        self.tokens = found.description.tokens
        self.metrics.last = dict(found.description.metrics)

    def _begin(self) -> None:
        """Take the weights of step 0: the seed's, or those of a checkpoint."""
        plan = self.plan
        if plan.starting_checkpoint is None:
            self.learner.initialise()
            return
        start = (plan.starting_checkpoint, plan.starting_digest, plan.shape.vocabulary_size)
        self.learner.load_weights(load_starting_weights(*start))

    def finish(self) -> TrainingSummary:
        """Train the steps that are left, then write the last checkpoint and wait for it."""
        first_step, stopped = self.learner.step, False
        try:
            with self.batches(self.plan.num_steps) as batches:
                while not (stopped or self.is_over):
                    stopped = self._train_one(batches)
            if self.learner.step > first_step and self.writer.last_step != self.learner.step:
                self._checkpoint()
            self._wait_for_writer()
        finally:
            self.writer.close()
        return TrainingSummary(
            step=self.learner.step,
            tokens=self.tokens,
            metrics=self.metrics.last,
            checkpoint=self._newest_path(),
            resumed_from=first_step,
            stopped=not self.is_over,
        )

    @property
    def is_over(self) -> bool:
        """Whether no step is left, or patience has run out."""
        return self.plan.is_over(self.learner.step, self.metrics.last)

    def batches(self, stop_step: int) -> AbstractContextManager[Prefetcher]:
        """Give this rank's micro-batches, step by step, from the learner's step on."""
        return self.windows.ahead(self.tokens, self.learner.step, stop_step)

    def take_step(self, micro_batches: np.ndarray, votes: Votes = NO_VOTES) -> StepReport:
        """Train one step; on failure say where and what to go back to."""
        try:
            report = self.learner.take_step(micro_batches, self._learning_rate_share(), votes)
        except RunFailedError as error:
            raise self._failure(self.learner.step + 1, self.tokens, error.found, error.expected) from error
        self.tokens += self.windows.step_tokens(self.tokens)
        return report

    def _learning_rate_share(self) -> float:
        """Return the share of the peak rate for the next step."""
        tokens = self.tokens + self.windows.step_tokens(self.tokens)
        return learning_rate_share(self.plan.recipe, tokens, self.total_tokens)

    def _train_one(self, batches: Prefetcher) -> bool:
        """Train, evaluate, log and checkpoint one step; return whether to stop."""
        start, tokens, share = time.perf_counter(), self.tokens, self._learning_rate_share()
        micro_batches, waited_seconds = batches.take()
        report = self.take_step(micro_batches, self._votes())
        seconds = time.perf_counter() - start
        if expected := self.metrics.leap(self.learner.step, report.loss):
            raise self._failure(self.learner.step, tokens, f"loss {report.loss:.4f}", expected)
        self.metrics.take(report, share, Pace((self.tokens - tokens) / seconds, waited_seconds / seconds))
        if self._is_due(self.plan.evaluate_every_steps) and len(self.held_out):
            self.metrics.take_validation_loss(self.held_out.loss(self.learner.window_losses))
        self._write_begun()
        self.observer.on_metrics(self.learner.step, self.tokens, dict(self.metrics.last))
        self._take_samples()
        self.writer.poll()
        if report.save_votes or self._is_due_by_steps() or self.metrics.are_best:
            self._checkpoint()
        return report.stop_votes > 0

    def _write_begun(self) -> None:
        """Say whose the folder is, as late as this: settings that fail in the first step can still be changed."""
        if self.ranks.rank == 0 and not self._is_begun and begun.read(self.plan.output) is None:
            begun.write(Begun(self.corpus.manifest.root_digest, self.plan))
        self._is_begun = True

    def _take_samples(self) -> None:
        if self.samples is not None and self._is_due(self.plan.sample_every_steps):
            assert isinstance(self.learner, Learner), "the plan refuses samples of a model no rank has whole"
            for prompt, text in self.samples.take(self.learner.step, self.learner.next_logits):
                self.observer.on_sample(self.learner.step, prompt, text)

    def _votes(self) -> Votes:
        # By the clock rank 0 alone decides, and tells the others, whose part of the state it may need.
        save = self.ranks.rank == 0 and time.monotonic() >= self._next_checkpoint_seconds
        return Votes(self.observer.should_stop(), save)

    def _failure(self, step: int, tokens_before: int, found: str, expected: str) -> RunFailedError:
        rows = self._suspect_rows(tokens_before)
        self.writer.wait()
        newest = self._newest_path()
        return RunFailedError(
            f"step {step}, rows {rows[0]} to {rows[-1]}",
            found,
            expected,
            f"the last good checkpoint is {newest or 'none'}; lower the learning rate, or look at the rows "
            "with `herd trace`",
        )

    def _suspect_rows(self, tokens_before: int) -> np.ndarray:
        """Return the rows of the first micro-batch with a loss that is no number, on whatever rank; else the step's.

        Every rank comes here in the same step, for all have the same report of it.
        """
        micro_batches = self.windows.step_rows(tokens_before).reshape(-1, self.plan.micro_batch_sequences)
        is_bad = np.zeros(len(micro_batches))
        mine = np.array_split(is_bad, self.ranks.num_ranks)[self.ranks.rank]  # a view
        mine[:] = ~np.isfinite(self.learner.micro_losses)
        bad = np.flatnonzero(add_over_ranks(is_bad, self.ranks, self.device))
        return micro_batches[bad[0]] if len(bad) else micro_batches.ravel()

    def _is_due(self, every_steps: int | None) -> bool:
        step = self.learner.step
        return step == self.plan.num_steps or (every_steps is not None and step % every_steps == 0)

    def _is_due_by_steps(self) -> bool:
        return self.plan.checkpoint_every_steps is not None and self._is_due(self.plan.checkpoint_every_steps)

    def _checkpoint(self) -> None:
        self._next_checkpoint_seconds = time.monotonic() + (self.plan.checkpoint_every_seconds or math.inf)
        if self.ranks.rank == 0:
            self.observer.before_checkpoint()
            self.writer.wait()  # before the snapshot, so that memory holds one at a time
            self.writer.begin(self._description(), *self.learner.snapshot())
        else:
            self.learner.join_snapshot()
            self.writer.last_step = self.learner.step

    def _description(self) -> Description:
        tokenizer = self.corpus.manifest.tokenizer
        return Description(
            step=self.learner.step,
            tokens=self.tokens,
            shape=self.plan.shape,
            recipe=self.plan.recipe.to_dict(),
            settings=self.plan.to_dict(),
            corpus_digest=self.corpus.manifest.root_digest,
            tokenizer={
                "name": tokenizer.name,
                "digest": tokenizer.digest,
                "vocabulary_size": tokenizer.vocabulary_size,
                "end_of_text": tokenizer.end_of_text,
            },
            metrics=dict(self.metrics.last),
        )

    def _wait_for_writer(self) -> None:
        self.writer.wait()
        add_over_ranks(np.zeros(1), self.ranks, self.device)  # no rank returns before the checkpoint is committed

    def _newest_path(self) -> Location | None:
        paths = checkpoint.list_paths(self.plan.output)
        return paths[-1] if paths else None

    def _agreed_path(self, before: int | None) -> Location | None:
        """Return rank 0's choice of checkpoint on every rank: folders may look different elsewhere."""
        found = checkpoint.load_newest(self.plan.output, before) if self.ranks.rank == 0 else None
        told = np.array([found.step + 1.0 if found else 0.0])
        (step,) = add_over_ranks(told, self.ranks, self.device)
        return checkpoint.path_of(self.plan.output, int(step) - 1) if step else None


def _samples(plan: TrainingPlan, tokenizer_name: str) -> Samples | None:
    if plan.sample_every_steps is None:
        return None
    return Samples(load_tokenizer(tokenizer_name), plan.sample_prompts, plan.seed)


def _agreed_precision(plan: TrainingPlan, device: torch.device, ranks: Ranks) -> Literal["fp32", "bf16"]:
    """Return what "auto" means on all ranks: fp32 where the run was begun so, or one of them has no fast bf16."""
    if plan.precision != "auto":
        return plan.precision
    found = begun.read(plan.output)
    is_begun_in_fp32 = found is not None and found.plan.precision == "fp32"
    wants_fp32 = is_begun_in_fp32 or choose_dtype("auto", device) == torch.float32
    return "fp32" if add_over_ranks(np.array([float(wants_fp32)]), ranks, device).any() else "bf16"


def _choose_device(plan: TrainingPlan) -> torch.device:
    if plan.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError("train.device", "no GPU in this process", "one a worker", "use device cpu or auto")
    return torch.device("cuda", torch.cuda.current_device())


def _make_learner(
    plan: TrainingPlan, device: torch.device, dtype: torch.dtype, ranks: Ranks
) -> Learner | FullyShardedLearner:
    compute = Compute(
        device,
        dtype,
        plan.reduction,
        plan.compiled,
        plan.sharding,
        activation_checkpointing=plan.activation_checkpointing,
    )
    # One rank alone has nothing to shard, and no process group to do it in.
    kind = FullyShardedLearner if plan.sharding == "full" and ranks.num_ranks > 1 else Learner
    return kind(plan.shape, plan.recipe, plan.seed, compute, ranks)
