"""Settings of the job that measures a checkpoint."""

from typing import Literal

from gpt_core.settings.base import Count, JobSettings, Place, PoolSettings, Settings


class EvaluateSettings(Settings):
    """What `herd evaluate` measures."""

    checkpoint: Place
    """Checkpoint folder, a run folder whose newest whole checkpoint is taken, or models:/NAME@ALIAS of MLflow."""
    corpus: Place
    """Corpus to measure on."""
    output: Place
    """Folder for the results."""
    split: Literal["train", "validation"] = "validation"
    """Split of the corpus to measure on."""
    context_tokens: Count | None = None
    """Tokens of a window; null takes the model's num_positions."""
    max_windows: Count | None = None
    """Windows measured at most, from the start of the split; null measures all."""
    windows_per_shard: Count = 64
    """Windows of one planned piece of work."""
    batch_sequences: Count = 16
    """Windows of one forward pass."""
    pool: PoolSettings = PoolSettings(cpus_per_actor=0.9)


class EvaluateJob(EvaluateSettings, JobSettings):
    """Settings of `herd evaluate`."""
