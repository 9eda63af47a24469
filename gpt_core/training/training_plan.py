"""What a training run is, as plain values, and the checks that cost no cluster time.

Built from the settings by the job, handed to every rank, written into every checkpoint.
Without torch, so that mistakes are found before a worker starts.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt_core.errors import CheckpointError, SettingsError
from gpt_core.model.presets import ModelShape
from gpt_core.training.early_stopping import is_out_of_patience
from gpt_core.training.schedule import BatchRamp, Recipe, is_power_of_two, powers_near

Reduction = Literal["exact", "fast"]
Sharding = Literal["none", "optimizer", "full"]
_DECAY = "recipe.decay_tokens"
_RESUME_REMEDIES = {
    "corpus": "give the corpus of this root digest",
    "checkpoint": "give the checkpoint of these weights",
    _DECAY: "set train.num_steps back, where the decay ends with it, or {name} to {before}",
}


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One training run; results depend on nothing else, the number of ranks included (exact mode).

    Raises:
        SettingsError: A window longer than the model's positions, or micro-batches that do not
            divide the batch, or a sharding that cannot do what else is asked for.
    """

    corpus: str
    output: str
    shape: ModelShape
    num_steps: int
    window_tokens: int
    batch_sequences: int
    micro_batch_sequences: int
    recipe: Recipe = Recipe()  # noqa: RUF009 - immutable
    seed: int = 0
    ramp_start_sequences: int | None = None
    """Sequences of the first steps, doubling up to batch_sequences over ramp_tokens; None = no ramp."""
    ramp_tokens: int = 0
    block_windows: int | None = None
    """Neighbouring windows shuffled as one block; None = all windows of an epoch freely. See ``corpus.order``."""
    cache_bytes: int | None = None
    """Bytes of local copies of the shards of a corpus in an object store; None = none are kept."""
    cache_folder: str | None = None
    """Where they lie on each node; None = among the temporary files."""
    reduction: Reduction = "exact"
    sharding: Sharding = "none"
    """What each rank keeps a part of only: the optimizer's state, or that and the weights."""
    activation_checkpointing: bool = False
    """Keep each block's input alone for the backward pass, and compute the rest of the block again."""
    device: Literal["cpu", "gpu"] = "cpu"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compiled: bool = False
    num_threads: int = 1
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints; None = at the end only."""
    checkpoint_every_seconds: float | None = None
    """Seconds after which a checkpoint is written besides; None = none."""
    keep_checkpoints: int = 2
    evaluate_every_steps: int | None = None
    """Steps between evaluations on the validation split; None = at the end only."""
    evaluate_sequences: int = 64
    patience_evaluations: int | None = None
    """Evaluations without a better one after which the run ends; None = never."""
    sample_every_steps: int | None = None
    """Steps between samples of what the model writes; None = none."""
    sample_prompts: tuple[str, ...] = ("",)
    """What they go on with; an empty prompt begins a document."""
    starting_checkpoint: str | None = None
    """Checkpoint folder whose weights the run begins with; None = those of the seed."""
    starting_digest: str | None = None
    """The digest of those weights."""
    max_loss_rise: float | None = None
    """Nats above the smoothed loss at which the run stops; None = only a loss that is no number stops it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The job's resolved settings but for where it ran and was tracked, kept in checkpoints for people to read."""
    work_folder: str | None = None
    """Where a run whose output is a URL keeps what no store can hold; None = a folder of runs/ here."""

    def __post_init__(self) -> None:
        if self.window_tokens > self.shape.num_positions:
            raise SettingsError(
                "train.context_tokens",
                f"{self.window_tokens}",
                f"at most the model's num_positions, {self.shape.num_positions}",
                "shorten the context or give the model more positions",
            )
        for name in ("batch_sequences", "ramp_start_sequences"):
            count = getattr(self, name)
            if count is not None and count % self.micro_batch_sequences:
                raise SettingsError(
                    "train.micro_batch_sequences",
                    f"{self.micro_batch_sequences}",
                    f"a divisor of {name}, {count}",
                    "choose one",
                )
        check_sharding(self.sharding, self.reduction, self.recipe.optimizer)
        if self.sharding == "full" and self.sample_every_steps is not None:
            raise SettingsError(
                "train.sample_every_steps",
                f"{self.sample_every_steps} with sharding full",
                "none: no worker has the whole model",
                "leave it out, or sample from a checkpoint with `herd generate`",
            )

    @property
    def folder(self) -> Path:
        """The local folder of the run's journal, lock and signals: the output itself, unless that is a URL."""
        from gpt_core.storage import local_folder  # here, so that the learner loads with torch and NumPy alone

        return Path(self.work_folder) if self.work_folder else local_folder(self.output)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of a full step: the leaves of the summation tree."""
        return self.batch_sequences // self.micro_batch_sequences

    @property
    def ramp(self) -> BatchRamp:
        """Micro-batches of each step."""
        start = self.ramp_start_sequences
        start_micro_batches = None if start is None else start // self.micro_batch_sequences
        return BatchRamp(self.num_micro_batches, start_micro_batches, self.ramp_tokens)

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens trained on by one micro-batch."""
        return self.micro_batch_sequences * self.window_tokens

    def tokens_after(self, num_steps: int) -> int:
        """Return the tokens of the first steps, ramp included."""
        if self.ramp_start_sequences is None:
            return num_steps * self.batch_sequences * self.window_tokens
        tokens, ramp = 0, self.ramp
        for _ in range(num_steps):
            tokens += ramp.micro_batches_at(tokens) * self.micro_batch_tokens
        return tokens

    def steps_for(self, num_tokens: int) -> int:
        """Return the first steps that come to so many tokens, ramp included."""
        if self.ramp_start_sequences is None:
            return -(-num_tokens // (self.batch_sequences * self.window_tokens))
        tokens, steps, ramp = 0, 0, self.ramp
        while tokens < num_tokens:
            tokens += ramp.micro_batches_at(tokens) * self.micro_batch_tokens
            steps += 1
        return steps

    def is_over(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Return whether a run that came to this step with these metrics has ended."""
        return step >= self.num_steps or is_out_of_patience(metrics, self.patience_evaluations)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; ``from_dict`` is the way back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "TrainingPlan":
        """Return the plan that ``to_dict`` was called on."""
        parts = {"shape": ModelShape(**values["shape"]), "recipe": Recipe(**values["recipe"])}
        parts |= {"sample_prompts": tuple(values.get("sample_prompts", ()))}  # JSON has lists
        return TrainingPlan(**(values | parts))

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must agree on, by the names people set."""
        recipe = self.recipe.to_dict()
        if self.recipe.decay_tokens is None:  # the learning rate follows the length of the run
            recipe["decay_tokens"] = self.tokens_after(self.num_steps)
        start = {} if self.starting_digest is None else {"checkpoint": self.starting_digest}
        blocks = {} if self.block_windows is None else {"block_windows": self.block_windows}
        return {
            **start,
            "model": self.shape.to_dict(),
            "recipe": recipe,
            "train": {
                "seed": self.seed,
                "precision": self.precision,
                "context_tokens": self.window_tokens,
                "batch_sequences": self.batch_sequences,
                "micro_batch_sequences": self.micro_batch_sequences,
                "ramp_start_sequences": self.ramp_start_sequences,
                "ramp_tokens": self.ramp_tokens,
                **blocks,
            },
        }

    def rounding(self) -> dict[str, Any]:
        """Return what else equal bits depend on; a resumed run may change it, and then ends with other bits."""
        return {
            "train.reduction": self.reduction,
            "train.sharding": "full" if self.sharding == "full" else "none or optimizer",
            "train.threads_per_worker": self.num_threads,
            "train.device": self.device,
            "train.compiled": self.compiled,
        }


def check_ranks(plan: TrainingPlan, num_ranks: int) -> None:
    """Refuse a number of ranks that the plan's steps, first ramped ones included, cannot be shared among.

    Raises:
        SettingsError: See ``check_batch_plan``.
    """
    check_batch_plan(plan.ramp.micro_batches_at(0), num_ranks, plan.reduction)
    check_batch_plan(plan.num_micro_batches, num_ranks, plan.reduction)


def allowed_ranks(plan: TrainingPlan, fewest: int, most: int) -> list[int]:
    """Return the numbers of ranks from fewest to most that the plan can run on, rising.

    Raises:
        SettingsError: There is none; names what keeps the largest from working.
    """
    allowed = []
    refusal: SettingsError | None = None
    for num_ranks in range(fewest, most + 1):
        try:
            check_ranks(plan, num_ranks)
        except SettingsError as error:
            refusal = error
        else:
            allowed.append(num_ranks)
    if not allowed and refusal is not None:
        raise refusal
    return allowed


def told_schedule(plan: TrainingPlan) -> str | None:
    """Return a sentence about a warm-up that the run does not outlast; None where it does."""
    tokens, warmup_tokens = plan.tokens_after(plan.num_steps), plan.recipe.warmup_tokens
    if warmup_tokens <= tokens:
        return None
    return (
        f"recipe.warmup_tokens {warmup_tokens:,} is more than the run's {tokens:,} tokens: the learning rate comes to "
        f"{tokens / warmup_tokens:.0%} of its peak only"
    )


def check_vocabulary(shape: ModelShape, tokenizer_name: str, vocabulary_size: int) -> None:
    """Refuse a model whose vocabulary is not the corpus's.

    Raises:
        SettingsError: It is larger or smaller.
    """
    if shape.vocabulary_size != vocabulary_size:
        raise SettingsError(
            "model.vocabulary_size",
            f"{shape.vocabulary_size}",
            f"{vocabulary_size}, that of the corpus's tokenizer {tokenizer_name!r}",
            "leave it out to take the tokenizer's",
        )


def check_resume(path: str, old: dict[str, Any], new: dict[str, Any], num_steps: tuple[int, int] | None = None) -> None:
    """Refuse to go on from a checkpoint of another corpus, model, recipe, seed or batch plan.

    Args:
        path: The run's folder.
        old: The identity of the run that was begun.
        new: That of this run.
        num_steps: The steps of both, where the decay ends with them.

    Raises:
        CheckpointError: Names the first setting that differs, both values, and what to do.
    """
    from gpt_core.ledger import differences  # here, so that the learner loads with torch and NumPy alone

    # Where it is not set, the end of the decay follows from other settings, which then are the ones to name.
    found = sorted(differences(old, new), key=lambda difference: difference[0] == _DECAY)
    if found:
        name, before, after = found[0]
        remedy = _RESUME_REMEDIES.get(name, "set {name} to {before}").format(
            name=name, before="null" if before is None else before
        )
        if name == _DECAY and num_steps:  # what the user has set
            name, (before, after) = "train.num_steps", num_steps
        raise CheckpointError(
            path,
            f"a run begun with {name} {before!r}",
            f"the {after!r} of this run",
            f"{remedy}, or choose another output folder",
        )


def check_sharding(sharding: Sharding, reduction: Reduction, optimizer: str) -> None:
    """Refuse to shard the weights themselves where that cannot be had with the rest.

    Raises:
        SettingsError: With exact reduction, or with Muon.
    """
    if sharding != "full":
        return
    if reduction == "exact":
        raise SettingsError(
            "train.sharding",
            "full with reduction exact",
            "reduction fast: the library sums gradients layer by layer, in an order that depends on the workers",
            "set train.reduction to fast, or train.sharding to optimizer, which is exact",
        )
    if optimizer == "muon":
        raise SettingsError(
            "train.sharding",
            "full with recipe.optimizer muon",
            "adamw: Muon needs whole matrices, of which each worker then has some rows",
            "set recipe.optimizer to adamw, or train.sharding to optimizer",
        )


def check_batch_plan(num_micro_batches: int, num_ranks: int, reduction: Reduction) -> None:
    """Refuse a number of ranks that the micro-batches of a step cannot be shared among.

    Raises:
        SettingsError: Ranks that do not divide the micro-batches, or, in exact mode, ranks or
            micro-batches that are no power of two; names the nearest ones that work.
    """
    if reduction == "exact" and not is_power_of_two(num_micro_batches):
        raise SettingsError(
            "train.batch_sequences",
            f"{num_micro_batches} micro-batches a step",
            "a power of two, which exact reduction needs",
            f"use {_either(powers_near(num_micro_batches, num_ranks, 2 * max(num_micro_batches, num_ranks)))}"
            + ("" if num_micro_batches % num_ranks else ", or reduction fast"),
        )
    if num_micro_batches % num_ranks:
        is_exact = reduction == "exact"
        fewer = _either(powers_near(num_ranks, 1, num_micro_batches)) if is_exact else "fewer workers"
        raise SettingsError(
            "train.num_workers",
            f"{num_ranks} workers for {num_micro_batches} micro-batches a step",
            "a power of two that divides them, as exact reduction needs" if is_exact else "a divisor of them",
            f"use {fewer}, or a larger batch",
        )


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
