"""Settings of the job that plans a training run."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gpt_core.settings.base import Count, Positive, Settings, fitting
from gpt_core.settings.pretrain import PresetName, ShapeSettings


class PlanSettings(Settings):
    """What `herd plan` estimates."""

    preset: PresetName = "gpt3-175b"
    """Published shape."""
    model: ShapeSettings = ShapeSettings()
    tokens: Positive = 300e9
    """Training tokens."""
    gpus: Count = 1024
    """GPUs of the run."""
    gpu: Literal["v100", "a100-40gb", "a100", "h100-pcie", "h100", "h200", "b200"] = "h100"
    """Kind of GPU."""
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the GPU's peak that training reaches; measure it, and say it here."""
    tflops: Positive | None = None
    """TFLOP/s a GPU reaches in training, in place of mfu."""
    tokens_per_second: Positive | None = None
    """Tokens/s a GPU reaches in training, in place of mfu and tflops."""
    flops_formula: Literal["6N", "palm"] = "6N"
    """FLOPs a token: 6N counts the parameters, palm the attention besides."""
    dollars_per_gpu_hour: Positive | None = None
    """Price of one GPU for an hour."""
    batch_tokens: Positive | None = None
    """Tokens of a full batch; null takes the preset's, or 524,288."""
    context_tokens: Count | None = None
    """Tokens of a training window; null takes the model's num_positions."""
    micro_batch_sequences: Count = 1
    """Sequences of one forward and backward on a GPU."""
    ramp_start_tokens: Positive = 32_000
    """Tokens of the first steps' batches."""
    ramp_tokens: Annotated[float, Field(ge=0)] = 4e9
    """Tokens over which the batch grows; 0 is no ramp."""
    tokenize_rate: Positive | None = None
    """Tokens/s one core tokenizes, as measured with `herd tokenize`; null takes what was measured on another machine,
    102 MB of text a core-second with gigatoken."""
    text_bytes_per_token: Positive = 4.1
    """Bytes of text a token stands for: about 4.1 in English prose, 2.5 in code, with the GPT-2 vocabulary."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.tflops is not None and self.tokens_per_second is not None:
            raise ValueError("tflops and tokens_per_second both given; give one of them")
        return self

    @model_validator(mode="after")
    def _makes_a_model(self) -> Self:
        fitting(lambda: self.model.with_preset(self.preset).shape(vocabulary_size=1))
        return self
