"""Settings of the job that teaches a checkpoint by examples."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gpt_core.errors import SettingsError
from gpt_core.settings.base import (
    Count,
    Index,
    JobSettings,
    ModelName,
    Place,
    Places,
    PoolSettings,
    Positive,
    Settings,
    Share,
    fitting,
)
from gpt_core.settings.pretrain import RecipeSettings, TrainSettings


class FinetuneRecipe(RecipeSettings):
    """Optimizer and schedule: those of pretraining at a lower rate."""

    learning_rate: Positive = 1e-4
    """Peak learning rate."""


class FinetuneTraining(TrainSettings):
    """Length, batch plan and rhythm of the run: those of pretraining, shorter, and ended by patience."""

    num_steps: Count = 1000
    """Optimizer steps at most."""
    context_tokens: Count | None = None
    """Tokens of a pack of examples; null takes the model's num_positions. Longer examples are set aside."""
    batch_sequences: Count = 16
    """Packs of an optimizer step, over all workers."""
    evaluate_every_steps: Count | None = 50
    """Steps between evaluations on the held-out examples; null evaluates at the end only."""
    evaluate_sequences: Count = 256
    """Packs of held-out examples used by each of these evaluations."""
    patience_evaluations: Count | None = 3
    """Evaluations without a lower held-out loss after which training ends; null trains to num_steps."""


class FinetuneSettings(Settings):
    """What `herd finetune` reads, trains and writes."""

    checkpoint: Place
    """Folder or URL of a checkpoint to begin with, or of a run whose newest one is taken; or MLflow's
    models:/NAME@ALIAS or models:/NAME/VERSION."""
    examples: Annotated[Places, Field(min_length=1)]
    """Files, folders, globs or URLs of examples: .jsonl or .parquet, plain, .gz or .zst (jsonl)."""
    task: Literal["translate", "summarize", "completion", "plain"]
    """How an example becomes text. translate: SOURCE <to-fr> TARGET; summarize: SOURCE TL;DR: TARGET;
    completion: [example] SOURCE [toCode] TARGET; plain: SOURCE and TARGET with nothing between them."""
    output: Place
    """Folder or URL of the run: packed examples, checkpoints, journal and settings."""
    separator: str | None = None
    """What stands between source and target; null takes the task's. A special token, but for summarize."""
    source_field: str = "source"
    """Field of an example that is read and not learnt."""
    target_field: str = "target"
    """Field of an example that is learnt."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of examples held out, chosen by a hash of their source."""
    split_seed: Index = 0
    """Seed of the hash that chooses the held-out examples."""
    max_reject_share: Share = 1.0
    """The job fails when more than this share of examples is set aside."""
    shard_bytes: Count = 67_108_864
    """Bytes of examples a shard of packs."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout rate while fine-tuning; null keeps the checkpoint's."""
    recipe: FinetuneRecipe = FinetuneRecipe()
    train: FinetuneTraining = FinetuneTraining()
    pool: PoolSettings = PoolSettings()
    register: ModelName | None = None
    """NAME or NAME@ALIAS: registers the best checkpoint in MLflow, as `herd pretrain` does."""

    @model_validator(mode="after")
    def _can_be_taught(self) -> Self:
        fitting(self._check_training)
        return self

    def _check_training(self) -> None:
        if self.train.sharding == "full":
            expected = "none or optimizer, which tell targets from prompts"
            raise SettingsError("train.sharding", "full", expected, "choose one of these")
        if self.train.patience_evaluations is not None and not self.validation_fraction:
            raise SettingsError(
                "validation_fraction",
                "0 with train.patience_evaluations",
                "held-out examples to be patient about",
                "hold some out, or set train.patience_evaluations to null",
            )


class FinetuneJob(FinetuneSettings, JobSettings):
    """Settings of `herd finetune`."""
