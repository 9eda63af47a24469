"""Settings of the job that generates text, and of the engine behind it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gpt_core.generation import request
from gpt_core.settings.base import (
    Count,
    JobSettings,
    Place,
    Places,
    PoolSettings,
    Settings,
    Share,
)


class SamplingSettings(Settings):
    """How the next token is chosen."""

    max_tokens: Count = 64
    """New tokens of a completion at most."""
    temperature: Annotated[float, Field(ge=0, le=request.MAX_TEMPERATURE)] = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: Count | None = 40
    """Keep the k likeliest tokens; 1 is greedy, null keeps all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the likeliest tokens that together reach this probability."""
    min_p: Share | None = None
    """Keep tokens at least this share as likely as the likeliest."""
    repetition_penalty: (
        Annotated[float, Field(ge=request.MIN_REPETITION_PENALTY, le=request.MAX_REPETITION_PENALTY)] | None
    ) = None
    """Divides (positive) or multiplies (negative) the logits of tokens already in the context."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ()
    """Strings that end a completion; the text is cut before them."""
    num_samples: Annotated[int, Field(gt=0, le=request.MAX_SAMPLES)] = 1
    """Completions of each prompt."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the draws; each token depends on (seed, prompt id, sample, position) alone."""
    logprobs: Annotated[int, Field(ge=0, le=request.MAX_ALTERNATIVES)] | None = None
    """Likeliest alternatives recorded for each token; null records no log-probabilities."""

    @model_validator(mode="after")
    def _computable(self) -> Self:
        if 0.0 < self.temperature < request.MIN_TEMPERATURE:
            raise ValueError(f"temperature {self.temperature} is too near 0 to divide by; take 0, which is greedy")
        return self


class EngineSettings(Settings):
    """The replicas that compute completions."""

    num_replicas: Count = 1
    """Replicas of the model; the fewest there are where max_replicas is given."""
    max_replicas: Count | None = None
    """Most replicas: more are started while completions wait for a slot; null keeps num_replicas."""
    num_slots: Count = 16
    """Sequences a replica decodes at once."""
    threads_per_replica: Count = 1
    """CPU threads of a replica."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes a GPU for each replica where the cluster has them."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """auto computes in bf16 where the hardware has instructions for its products; int8 rounds weights and activations
    to 8 bits, for CPUs with VNNI instructions."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below num_replicas {self.num_replicas}; raise it or leave it out"
            )
        return self


class GenerateSettings(Settings):
    """What `herd generate` completes."""

    checkpoint: Place
    """Folder or URL of a checkpoint, or of a run whose newest whole one is taken; or MLflow's models:/NAME@ALIAS or
    models:/NAME/VERSION."""
    prompts: Annotated[Places, Field(min_length=1)]
    """Prompt files: txt (a prompt a line), jsonl (prompt, optional id and sampling), parquet, Arrow; mid (music)."""
    output: Place
    """Folder or URL of the generated dataset."""
    address: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Running `herd serve` of the same checkpoint that computes, such as http://127.0.0.1:8000, with its key in
    HERD_API_KEY; null starts replicas for this job."""
    format: Literal["jsonl", "arrow"] = "jsonl"
    """File format of the rows."""
    prompts_per_shard: Count = 128
    """Prompts of one planned shard, a file of the dataset: progress moves by it, and a killed actor does one again."""
    sampling: SamplingSettings = SamplingSettings()
    engine: EngineSettings = EngineSettings(num_slots=64)
    pool: PoolSettings = PoolSettings(cpus_per_actor=0.1)


class GenerateJob(GenerateSettings, JobSettings):
    """Settings of `herd generate`."""
