"""Settings of the jobs that train, and of those that replay, compare and draw what was trained."""

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gpt_core.errors import SettingsError
from gpt_core.model.presets import PRESETS, ModelShape
from gpt_core.settings.base import (
    Count,
    CountOrRange,
    Index,
    JobSettings,
    LocalPlace,
    ModelName,
    Place,
    Positive,
    Settings,
    Share,
    fitting,
)
from gpt_core.training.schedule import BatchRamp, Recipe, powers_near
from gpt_core.training.training_plan import TrainingPlan, check_sharding

PresetName = Literal[
    "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl",
    "gpt3-small", "gpt3-medium", "gpt3-large", "gpt3-xl",
    "gpt3-2.7b", "gpt3-6.7b", "gpt3-13b", "gpt3-175b",
]  # fmt: skip


class ShapeSettings(Settings):
    """Shape of a model: a preset, and what differs from it."""

    preset: PresetName = "gpt2"
    """Published shape to start from."""
    n_layer: Count | None = None
    """Transformer blocks; null takes the preset's."""
    n_head: Count | None = None
    """Attention heads a block; divides n_embd."""
    n_embd: Count | None = None
    """Width of the residual stream."""
    num_positions: Count | None = None
    """Longest context in tokens."""
    vocabulary_size: Count | None = None
    """Rows of the token embedding; null takes those of the corpus's tokenizer, or GPT-2's where there is no corpus."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate of embeddings, attention and residual branches."""
    attention_band: Count | None = None
    """Band in tokens of every second layer (GPT-3's alternating pattern); null is dense attention everywhere."""

    def shape(self, vocabulary_size: int) -> ModelShape:
        """Return the preset's shape with these settings over it; the vocabulary is as given unless set.

        Raises:
            SettingsError: The numbers do not make a model, such as heads that do not divide the width.
        """
        changes = self.model_dump(exclude={"preset"}, exclude_none=True)
        return replace(PRESETS[self.preset].shape, **{"vocabulary_size": vocabulary_size, **changes})

    def with_preset(self, preset: PresetName | None) -> Self:
        """Return the settings with another preset, where one is given.

        Raises:
            SettingsError: They name a third one themselves.
        """
        if preset is None:
            return self
        if self.preset not in (preset, ShapeSettings().preset):
            raise SettingsError("model.preset", self.preset, f"no other than preset, {preset}", "give preset alone")
        return self.model_copy(update={"preset": preset})


class ModelSettings(ShapeSettings):
    """Shape of the model: a preset, and what differs from it."""

    @model_validator(mode="after")
    def _makes_a_model(self) -> Self:
        fitting(lambda: self.shape(vocabulary_size=1))
        return self


class RecipeSettings(Settings):
    """Optimizer and schedule; the defaults are those of the GPT-3 paper."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon updates the blocks' matrices with Muon and the rest with AdamW."""
    learning_rate: Positive = 6e-4
    """Peak learning rate."""
    min_learning_rate_share: Share = 0.1
    """Learning rate at the end of the decay, as a share of the peak."""
    warmup_tokens: Index = 0
    """Tokens of linear warm-up."""
    decay_tokens: Count | None = None
    """Tokens at which the cosine decay ends; null is the end of training."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first-moment decay."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's second-moment decay."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decay of tensors of two or more dimensions."""
    clip_norm: Positive = 1.0
    """Global gradient norm above which gradients are scaled down."""
    muon_learning_rate: Positive = 0.02
    """Peak learning rate of the matrices when the optimizer is muon."""

    @model_validator(mode="after")
    def _makes_a_recipe(self) -> Self:
        fitting(lambda: Recipe(**self.model_dump()))
        return self


class TrainSettings(Settings):
    """Length, batch plan and rhythm of a training run."""

    num_steps: Count = 1000
    """Optimizer steps."""
    num_tokens: Count | None = None
    """Tokens to train on, rounded up to whole steps, in place of num_steps; null is num_steps."""
    max_seconds: Positive | None = None
    """Seconds after which a job ends with a checkpoint; the same command then goes on from it. null is no limit."""
    context_tokens: Count | None = None
    """Tokens of a training window; null takes the model's num_positions."""
    batch_sequences: Count = 512
    """Sequences of an optimizer step, over all workers."""
    micro_batch_sequences: Count = 4
    """Sequences of one forward and backward; with batch_sequences it fixes the order of every sum."""
    num_workers: CountOrRange = 1
    """Data-parallel workers: a power of two; or [MIN, MAX], as many as the cluster's nodes have room for at the time.
    Results do not depend on it."""
    threads_per_worker: Count = 1
    """CPU threads of a worker; recorded, since CPU kernels may depend on it."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes GPUs where the cluster has one for each worker."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto computes in bf16 where the hardware has instructions for its products, with fp32 master weights."""
    reduction: Literal["exact", "fast"] = "exact"
    """exact sums gradients in one fixed tree (same bits for any num_workers); fast uses the library's all-reduce."""
    sharding: Literal["none", "optimizer", "full"] = "none"
    """What each worker keeps a part of only: optimizer, its state, with the same results to the bit; full, the
    weights and gradients too, for models that do not fit otherwise: needs reduction fast and adamw."""
    seed: Index = 0
    """Seed of initial weights, data order and dropout."""
    block_windows: Count | None = None
    """Shuffle blocks of so many neighbouring windows, and the windows inside each, so that a corpus in an object store
    is read in long runs; null shuffles all windows of an epoch freely."""
    cache_bytes: Count | None = 16 << 30
    """Bytes of copies of a remote corpus's shards kept on each node's disk, fetched ahead; null keeps none."""
    cache_folder: LocalPlace | None = None
    """Where these copies lie; null is a folder of this user's in /var/tmp, or in TMPDIR."""
    work_folder: LocalPlace | None = None
    """Where a run whose output is a URL keeps its journal and locks, which all workers must see; null is the folder
    runs/ where the command is typed."""
    evaluate_every_steps: Count | None = 100
    """Steps between evaluations on the held-out split; null evaluates at the end only."""
    evaluate_sequences: Count = 64
    """Windows of the held-out split used by each of these evaluations."""
    sample_every_steps: Count | None = None
    """Steps between samples of what the model writes, in samples.jsonl and at the end as a table of the run; null takes
    none."""
    sample_prompts: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("",)
    """What the samples go on with, 64 tokens each; an empty prompt begins a document."""
    checkpoint_every_steps: Count | None = 100
    """Steps between checkpoints; null writes none by steps but the last."""
    checkpoint_every_seconds: Positive | None = None
    """Seconds after which a checkpoint is written besides; null is none."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept; the best by held-out loss, written whenever an evaluation is better than all before, is
    kept besides."""
    ramp_start_sequences: Count | None = None
    """Sequences of the first steps, doubling up to batch_sequences over ramp_tokens; null is no ramp."""
    ramp_tokens: Index = 0
    """Tokens over which the batch grows; goes with ramp_start_sequences."""
    max_loss_rise: Positive | None = None
    """Nats above the smoothed loss at which the run stops; null stops only for a loss that is no number."""
    compiled: bool = False
    """Compile the model: about half a minute once, worth it for long runs."""
    activation_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping what it made: less memory, a third more work,
    the same bits."""
    max_failures: Index = 3
    """Losses of workers or nodes survived in a row without a new checkpoint between them."""

    @property
    def fewest_workers(self) -> int:
        """The least number of workers to train on."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The largest number of workers to train on."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def fewest_cpus(self) -> int:
        """CPUs of the least number of workers."""
        return self.fewest_workers * self.threads_per_worker

    @model_validator(mode="after")
    def _batch_plan(self) -> Self:
        if self.batch_sequences % self.micro_batch_sequences:
            raise ValueError(
                f"micro_batch_sequences {self.micro_batch_sequences} does not divide "
                f"batch_sequences {self.batch_sequences}"
            )
        micro_batches = self.batch_sequences // self.micro_batch_sequences
        if self.reduction == "exact" and micro_batches & (micro_batches - 1):
            raise ValueError(
                f"batch_sequences / micro_batch_sequences is {micro_batches}; exact reduction needs a power of two"
            )
        fewest, most = self.fewest_workers, self.most_workers
        ramp = self.ramp_start_sequences if self.ramp_tokens else None
        shared = min(micro_batches, (ramp or self.batch_sequences) // self.micro_batch_sequences)  # by the first step
        if any(self._works_with(count, shared) for count in range(fewest, most + 1)):
            return self
        if fewest > most:
            raise ValueError(f"num_workers {[fewest, most]} has its largest number first; expected [MIN, MAX]")
        nearest = " or ".join(map(str, powers_near(most, 1, shared)))
        if self.reduction == "exact" and (fewest < most or most & (most - 1)):
            raise ValueError(
                f"num_workers {self._workers_in_words} is no power of two, which exact reduction needs; take {nearest}"
            )
        raise ValueError(
            f"num_workers {self._workers_in_words} does not divide the {shared} micro-batches of a step"
            + (f"; take {nearest}" if self.reduction == "exact" else "")
        )

    @model_validator(mode="after")
    def _ramp_and_sharding(self) -> Self:
        start = self.ramp_start_sequences
        if start is None and self.ramp_tokens:
            raise ValueError(f"ramp_tokens {self.ramp_tokens} without ramp_start_sequences; give both or neither")
        if start is not None:
            if not self.ramp_tokens:
                raise ValueError(f"ramp_start_sequences {start} without ramp_tokens; give both or neither")
            if start % self.micro_batch_sequences:
                raise ValueError(
                    f"micro_batch_sequences {self.micro_batch_sequences} does not divide ramp_start_sequences {start}"
                )
            sequences = self.micro_batch_sequences
            fitting(lambda: BatchRamp(self.batch_sequences // sequences, start // sequences, self.ramp_tokens))
        fitting(lambda: check_sharding(self.sharding, self.reduction, "adamw"))
        return self

    def _works_with(self, num_workers: int, micro_batches: int) -> bool:
        fits_tree = self.reduction == "fast" or not num_workers & (num_workers - 1)
        return fits_tree and micro_batches % num_workers == 0

    @property
    def _workers_in_words(self) -> str:
        fewest, most = self.fewest_workers, self.most_workers
        return str(most) if fewest == most else f"{fewest} to {most}"


class PretrainSettings(Settings):
    """What `herd pretrain` reads, trains and writes."""

    corpus: Place
    """Folder or URL of a corpus made by `herd tokenize`."""
    output: Place
    """Folder or URL of the run: checkpoints, journal and settings."""
    model: ModelSettings = ModelSettings()
    recipe: RecipeSettings = RecipeSettings()
    train: TrainSettings = TrainSettings()
    register: ModelName | None = None
    """NAME or NAME@ALIAS: registers the trained model in MLflow, in the Hugging Face layout, as the newest version of
    NAME, to which ALIAS (newest) then points; models:/NAME@ALIAS is a checkpoint to the other jobs."""

    @model_validator(mode="after")
    def _makes_a_plan(self) -> Self:
        shape, train = self.model.shape(vocabulary_size=1), self.train
        fitting(
            lambda: TrainingPlan(
                corpus=self.corpus,
                output=self.output,
                shape=shape,
                num_steps=train.num_steps,
                window_tokens=train.context_tokens or shape.num_positions,
                batch_sequences=train.batch_sequences,
                micro_batch_sequences=train.micro_batch_sequences,
                recipe=Recipe(**self.recipe.model_dump()),
                reduction=train.reduction,
                sharding=train.sharding,
            )
        )
        return self


class ReplaySettings(Settings):
    """What `herd replay` recomputes."""

    run: Place
    """Folder of the training run."""
    step: Count
    """Step to recompute, counted from 1 as it was logged."""
    num_workers: Count = 1
    """Processes of this machine to share the step: any number the run could have used."""
    corpus: Place | None = None
    """Folder or URL of the corpus, where it has moved since."""


class CompareSettings(Settings):
    """What `herd compare` reads."""

    runs: Annotated[tuple[Place, ...], Field(strict=False, min_length=2, max_length=2)]
    """Folders of two training runs."""


class AnatomySettings(Settings):
    """What `herd model` prints."""

    model: ShapeSettings = ShapeSettings()
    preset: PresetName | None = None
    """Short for model.preset."""

    @model_validator(mode="after")
    def _makes_a_model(self) -> Self:
        fitting(lambda: self.model.with_preset(self.preset).shape(vocabulary_size=1))
        return self


class PretrainJob(PretrainSettings, JobSettings):
    """Settings of `herd pretrain`."""
