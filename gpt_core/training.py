"""The training loop: steps, metrics, evaluations, checkpoints, resume.  No cluster library.

Every rank calls ``train`` with the same plan.  Invariant (exact mode): what is logged and what is
saved after step S depends on the plan and the corpus alone, not on the number of ranks, nor on how
often the run was stopped, killed and resumed on the way.
"""

import math
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from gpt_core import checkpoint, early_stopping
from gpt_core.checkpoint import Description
from gpt_core.checkpoint_writer import CheckpointWriter
from gpt_core.errors import ResourceError, RunFailedError
from gpt_core.learner import Compute, Learner, StepReport
from gpt_core.masked_windows import num_targets
from gpt_core.order import Cells
from gpt_core.precision import choose_dtype, peak_flops
from gpt_core.prefetch import Prefetcher
from gpt_core.reduction import Ranks
from gpt_core.schedule import learning_rate_share
from gpt_core.sole_writer import sole_writer
from gpt_core.starting_weights import load_starting_weights
from gpt_core.supervised_corpus import open_corpus
from gpt_core.training_plan import TrainingPlan, check_ranks, check_resume, check_vocabulary

Metrics = dict[str, float]

# A loss is smoothed over about 50 steps; a spike is looked for once the mean means something.
SMOOTHING = 0.98
STEPS_BEFORE_SPIKES = 50

# A worker outlives its killed driver by about two seconds, or by a checkpoint under way.
LOCK = ".writer"
LOCK_PATIENCE_SECONDS = 60.0


class Observer(Protocol):
    """What the loop tells its caller."""

    def on_metrics(self, step: int, tokens: int, metrics: Metrics) -> None:
        """Take the metrics after a step; called on every rank, with equal loss, norm and rate."""

    def on_checkpoint(self, path: Path, step: int, metrics: Metrics) -> None:
        """Take a checkpoint that is committed; called on rank 0 alone, on the training thread."""

    def should_stop(self) -> bool:
        """Say whether to checkpoint and return; asked before each step, one rank's yes is enough."""
        ...


class Silence:
    """An observer that does nothing."""

    def on_metrics(self, step: int, tokens: int, metrics: Metrics) -> None:
        """Do nothing."""

    def on_checkpoint(self, path: Path, step: int, metrics: Metrics) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Never stop."""
        return False


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """How a run ended."""

    step: int
    tokens: int
    metrics: Metrics
    """The last step's, with the last validation_loss."""
    checkpoint: Path | None
    resumed_from: int
    """The step the run began with: 0 for a fresh one."""
    stopped: bool
    """Stopped before the plan's last step, because an observer asked for it."""


def train(plan: TrainingPlan, ranks: Ranks | None = None, observer: Observer | None = None) -> TrainingSummary:
    """Train to the plan's end, from the newest whole checkpoint of its output folder if there is one.

    Sets this process's torch threads and, with dropout, reseeds torch's generator each micro-batch.
    Writes checkpoints under ``plan.output`` on rank 0, each atomically; while it does, no other
    process can train there.

    Raises:
        ResourceError: Another process trains in the output folder and does not end.
        SettingsError: The plan does not fit the corpus or the ranks.
        CorpusError: The corpus is absent, damaged, or smaller than a batch.
        CheckpointError: The output folder holds another run, or cannot be written.
        RunFailedError: The loss spiked or is no number; names the step, rows and last checkpoint.
    """
    run = Run(plan, ranks or Ranks(), observer or Silence())
    alone = sole_writer(plan.output, LOCK, LOCK_PATIENCE_SECONDS) if run.ranks.rank == 0 else nullcontext()
    with alone:
        run.resume()
        return run.finish()


def replay(run_folder: str, step: int, ranks: Ranks | None = None, corpus: str | None = None) -> StepReport:
    """Recompute one step of a finished or unfinished run from the nearest checkpoint before it.

    Returns the loss and norm that were logged for it, bit for bit in exact mode; writes nothing.

    Args:
        run_folder: Output folder of the run.
        step: Step to recompute, counted from 1 as it was logged.
        ranks: This process among its peers.
        corpus: Folder of the corpus, where it has moved.

    Raises:
        CheckpointError: The folder has no checkpoint.
    """
    newest = checkpoint.load(run_folder)
    values = newest.description.settings
    plan = TrainingPlan.from_dict(values | {"output": run_folder, "corpus": corpus or values["corpus"]})
    run = Run(plan, ranks or Ranks(), Silence())
    run.resume(before=step)
    report: StepReport | None = None
    with run.batches(stop_step=step) as batches:
        while run.learner.step < step:
            report = run.take_step(batches.take()[0], stop=False)
    if report is None:
        raise RunFailedError(run_folder, f"step {step}", "a step of 1 or more", "name one that was logged")
    return report


def replay_rank(ranks: Ranks, run_folder: str, step: int, corpus: str | None) -> StepReport:
    """Call ``replay`` as one rank of several."""
    return replay(run_folder, step, ranks, corpus)


class Run:
    """One rank's part of a training run."""

    def __init__(self, plan: TrainingPlan, ranks: Ranks, observer: Observer) -> None:
        check_ranks(plan, ranks.num_ranks)
        torch.set_num_threads(plan.num_threads)
        self.plan = plan
        self.ranks = ranks
        self.observer = observer
        self.corpus = open_corpus(plan.corpus, "train")
        tokenizer = self.corpus.manifest.tokenizer
        check_vocabulary(plan.shape, tokenizer.name, tokenizer.vocabulary_size)
        self.order = self.corpus.order(plan.seed, plan.window_tokens, plan.batch_sequences)
        self.device = _choose_device(plan)
        dtype = choose_dtype(plan.precision, self.device)
        # "auto" may mean another dtype elsewhere: what it meant here is what checkpoints remember.
        self.plan = replace(plan, precision="bf16" if dtype == torch.bfloat16 else "fp32")
        compute = Compute(self.device, dtype, plan.reduction, plan.compiled)
        self.learner = Learner(plan.shape, plan.recipe, plan.seed, compute, ranks)
        self.validation = self._validation_windows()
        self.writer = CheckpointWriter(plan.output, plan.keep_checkpoints, observer.on_checkpoint)
        self.total_tokens = plan.tokens_after(plan.num_steps)
        self.tokens = 0
        self.metrics: Metrics = {}
        self._next_checkpoint_seconds = time.monotonic() + (plan.checkpoint_every_seconds or math.inf)

    def resume(self, before: int | None = None) -> None:
        """Take up the newest whole checkpoint (of a step below ``before``), or begin at step 0."""
        path = self._agreed_path(before)
        if before is None and self.ranks.rank == 0:
            checkpoint.set_aside_after(self.plan.output, _step_of(path))
        if path is None:
            self._begin()
            return
        found = checkpoint.load(path)
        check_resume(str(path), self._identity_of(found.description), self._identity())
        self.learner.load_weights(found.weights).load_optimizer_state(found.load_optimizer(), found.step)
        self.tokens = found.description.tokens
        self.metrics = dict(found.description.metrics)

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
            metrics=self.metrics,
            checkpoint=self._newest_path(),
            resumed_from=first_step,
            stopped=not self.is_over,
        )

    @property
    def is_over(self) -> bool:
        """Whether no step is left, or patience has run out."""
        return self.plan.is_over(self.learner.step, self.metrics)

    @contextmanager
    def batches(self, stop_step: int) -> Iterator[Prefetcher]:
        """Yield this rank's micro-batches, step by step, from the learner's step on."""
        tokens = {"at": self.tokens}

        def make(_: int) -> np.ndarray:
            rows = self._rows(tokens["at"])
            tokens["at"] += self._step_tokens(tokens["at"])
            windows = self._read(rows)
            return windows.reshape(-1, self.plan.micro_batch_sequences, windows.shape[1])

        with Prefetcher(make, self.learner.step, stop_step) as prefetcher:
            yield prefetcher

    def take_step(self, micro_batches: np.ndarray, *, stop: bool) -> StepReport:
        """Train one step; on failure say where and what to go back to."""
        tokens = self.tokens + self._step_tokens(self.tokens)
        share = learning_rate_share(self.plan.recipe, tokens, self.total_tokens)
        try:
            report = self.learner.take_step(micro_batches, share, stop=stop)
        except RunFailedError as error:
            raise self._failure(self.learner.step + 1, self.tokens, error.found, error.expected) from error
        self.tokens = tokens
        return report

    def _train_one(self, batches: Prefetcher) -> bool:
        """Train, evaluate, log and checkpoint one step; return whether to stop."""
        start, tokens = time.perf_counter(), self.tokens
        share = learning_rate_share(self.plan.recipe, tokens + self._step_tokens(tokens), self.total_tokens)
        micro_batches, waited_seconds = batches.take()
        report = self.take_step(micro_batches, stop=self.observer.should_stop())
        seconds = time.perf_counter() - start
        self._guard_against_spikes(report.loss, tokens)
        self.metrics = self._step_metrics(report, share, (self.tokens - tokens) / seconds)
        self.metrics["data_wait_share"] = waited_seconds / seconds
        if self._is_due(self.plan.evaluate_every_steps) and len(self.validation):
            self._evaluate()
        self.observer.on_metrics(self.learner.step, self.tokens, dict(self.metrics))
        self.writer.poll()
        if self._checkpoint_is_due():
            self._checkpoint()
        return report.stop_votes > 0

    def _evaluate(self) -> None:
        self.metrics["validation_loss"] = loss = self.validation_loss()
        if self.plan.patience_evaluations is not None:
            self.metrics |= early_stopping.after_evaluation(self.metrics, loss)

    def validation_loss(self) -> float:
        """Return the mean loss over the held-out windows, the same bits on any number of ranks."""
        sums = np.zeros(len(self.validation))
        size = self.plan.micro_batch_sequences
        for number, start in enumerate(range(0, len(sums), size)):
            if number % self.ranks.num_ranks == self.ranks.rank:
                sums[start : start + size] = self.learner.window_losses(self.validation[start : start + size])
        # Each sum is one rank's number and zeros of the others', so that adding them is exact.
        total = math.fsum(self._add_over_ranks(sums))
        return total / num_targets(self.validation)

    def _add_over_ranks(self, values: np.ndarray) -> np.ndarray:
        if self.ranks.num_ranks == 1:
            return values
        tensor = torch.from_numpy(values).to(self.device)
        dist.all_reduce(tensor, group=self.ranks.group)
        return tensor.cpu().numpy()

    def _step_metrics(self, report: StepReport, share: float, tokens_per_second: float) -> Metrics:
        smoothed = self.metrics.get("smoothed_loss", report.loss)
        metrics = {
            "loss": report.loss,
            "smoothed_loss": SMOOTHING * smoothed + (1 - SMOOTHING) * report.loss,
            "grad_norm": report.grad_norm,
            "learning_rate": self.plan.recipe.learning_rate * share,
            "tokens_per_second": tokens_per_second,
            "peak_memory_bytes": float(_peak_memory_bytes(self.device)),
            **early_stopping.carried(self.metrics),
        }
        peak = peak_flops(self.device)
        if peak is not None:
            flops = tokens_per_second * self.plan.shape.flops_a_token(self.plan.window_tokens)
            metrics["mfu_palm"] = flops / (peak * self.ranks.num_ranks)
        return metrics

    def _guard_against_spikes(self, loss: float, tokens_before: int) -> None:
        step, limit = self.learner.step, self.plan.max_loss_rise
        smoothed = self.metrics.get("smoothed_loss", loss)
        if limit is None or step <= STEPS_BEFORE_SPIKES or loss <= smoothed + limit:
            return
        expected = f"at most {limit} above the smoothed loss {smoothed:.4f}"
        raise self._failure(step, tokens_before, f"loss {loss:.4f}", expected)

    def _failure(self, step: int, tokens_before: int, found: str, expected: str) -> RunFailedError:
        rows = self._rows(tokens_before)
        bad = [index for index, loss in enumerate(self.learner.micro_losses) if not math.isfinite(loss)]
        if bad:
            size = self.plan.micro_batch_sequences
            rows = rows[bad[0] * size : (bad[0] + 1) * size]
        self.writer.wait()
        newest = self._newest_path()
        return RunFailedError(
            f"step {step}, rows {rows[0]} to {rows[-1]}",
            found,
            expected,
            f"the last good checkpoint is {newest or 'none'}; lower the learning rate, or look at the rows "
            "with `herd trace`",
        )

    def _is_due(self, every_steps: int | None) -> bool:
        step = self.learner.step
        return step == self.plan.num_steps or (every_steps is not None and step % every_steps == 0)

    def _checkpoint_is_due(self) -> bool:
        # By the clock rank 0 alone decides, which alone writes; no result depends on when.
        by_steps = self.plan.checkpoint_every_steps is not None and self._is_due(self.plan.checkpoint_every_steps)
        is_kept = self.plan.patience_evaluations is not None and early_stopping.is_best(self.metrics)
        return by_steps or is_kept or time.monotonic() >= self._next_checkpoint_seconds

    def _checkpoint(self) -> None:
        self._next_checkpoint_seconds = time.monotonic() + (self.plan.checkpoint_every_seconds or math.inf)
        if self.ranks.rank != 0:
            self.writer.last_step = self.learner.step
            return
        tokenizer = self.corpus.manifest.tokenizer
        description = Description(
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
            metrics=dict(self.metrics),
        )
        self.writer.begin(description, *self.learner.snapshot())

    def _wait_for_writer(self) -> None:
        self.writer.wait()
        self._add_over_ranks(np.zeros(1))  # no rank returns before the checkpoint is committed

    def _newest_path(self) -> Path | None:
        paths = checkpoint.list_paths(self.plan.output)
        return paths[-1] if paths else None

    def _agreed_path(self, before: int | None) -> Path | None:
        """Return rank 0's choice of checkpoint on every rank: folders may look different elsewhere."""
        found = checkpoint.load_newest(self.plan.output, before) if self.ranks.rank == 0 else None
        step = self._add_over_ranks(np.array([found.step + 1.0 if found else 0.0]))[0]
        return checkpoint.path_of(self.plan.output, int(step) - 1) if step else None

    def _identity(self) -> dict[str, object]:
        precision = {"train.precision": self.plan.precision}
        return {"corpus_digest": self.corpus.manifest.root_digest, **self.plan.identity(), **precision}

    def _identity_of(self, description: Description) -> dict[str, object]:
        plan = TrainingPlan.from_dict(description.settings)
        precision = {"train.precision": plan.precision}
        return {"corpus_digest": description.corpus_digest, **plan.identity(), **precision}

    def _step_tokens(self, tokens: int) -> int:
        return self.plan.ramp.micro_batches_at(tokens) * self.plan.micro_batch_tokens

    def _rows(self, tokens: int) -> np.ndarray:
        """Return this rank's rows of the step after ``tokens``, counted over the whole run."""
        num_rows = self._step_tokens(tokens) // self.plan.window_tokens
        share = num_rows // self.ranks.num_ranks
        start = tokens // self.plan.window_tokens + self.ranks.rank * share
        return np.arange(start, start + share)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Return the windows of rows of the whole run; a ramped step may cross the order's steps."""
        steps, rows_of_step = np.divmod(rows, self.plan.batch_sequences)
        pieces = [self.corpus.batch(self.order, int(s), rows_of_step[steps == s]) for s in np.unique(steps)]
        return np.concatenate(pieces)

    def _validation_windows(self) -> np.ndarray:
        """Return evenly spaced windows of the held-out split, int64 [n, T + 1]; none where there is none."""
        if "validation" not in self.corpus.manifest.splits:
            if self.plan.evaluate_every_steps is not None and self.ranks.rank == 0:
                warnings.warn(f"{self.plan.corpus} has no validation split: no validation loss", stacklevel=2)
            return np.zeros((0, self.plan.window_tokens + 1), np.int64)
        held_out = open_corpus(self.plan.corpus, "validation")
        cells = held_out.every_window(self.plan.window_tokens)
        count = min(self.plan.evaluate_sequences, len(cells))
        chosen = np.arange(count) * len(cells) // max(count, 1)
        cells = Cells(cells.sources[chosen], cells.epochs[chosen], cells.windows[chosen])
        windows = held_out.windows(cells, self.plan.window_tokens)
        held_out.close()
        return windows


def _step_of(path: Path | None) -> int:
    return checkpoint.read_description(path).step if path else 0


def _choose_device(plan: TrainingPlan) -> torch.device:
    if plan.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError("train.device", "no GPU in this process", "one a worker", "use device cpu or auto")
    return torch.device("cuda", torch.cuda.current_device())


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
