"""The recipe of a run, and what follows from it at each step: learning rate and batch.

Everything is counted in tokens, so that a change of batch size moves nothing.  Pure and
without torch; the planner, the settings' checks and the training loop read it.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gpt_core.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Recipe:
    """Optimizer and schedule; the defaults are GPT-3's (Brown et al. 2020, appendix B).

    Raises:
        SettingsError: A warm-up that is longer than the decay.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 6e-4
    min_learning_rate_share: float = 0.1
    warmup_tokens: int = 0
    decay_tokens: int | None = None
    """Tokens at which the cosine reaches its floor and holds it; None = the end of training."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    muon_learning_rate: float = 0.02

    def __post_init__(self) -> None:
        if self.decay_tokens is not None and self.warmup_tokens > self.decay_tokens:
            raise SettingsError(
                "recipe.warmup_tokens",
                f"{self.warmup_tokens}",
                f"at most decay_tokens, {self.decay_tokens}",
                "shorten the warm-up or lengthen the decay",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; ``Recipe(**values)`` is the way back."""
        return asdict(self)


def learning_rate_share(recipe: Recipe, tokens: int, total_tokens: int) -> float:
    """Return the learning rate as a share of its peak, in (0, 1].

    Args:
        recipe: The schedule.
        tokens: Tokens trained on at the end of the step, so that the first step already learns and
            the last one runs at the floor.
        total_tokens: Tokens of the whole run; the end of the decay where the recipe names none.
    """
    if tokens < recipe.warmup_tokens:
        return tokens / recipe.warmup_tokens
    decay_tokens = total_tokens if recipe.decay_tokens is None else recipe.decay_tokens
    if tokens >= decay_tokens:
        return recipe.min_learning_rate_share
    progress = (tokens - recipe.warmup_tokens) / (decay_tokens - recipe.warmup_tokens)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return recipe.min_learning_rate_share + (1.0 - recipe.min_learning_rate_share) * cosine


@dataclass(frozen=True, slots=True)
class BatchRamp:
    """The micro-batches of each step: a linear ramp in tokens, taken in powers of two.

    GPT-3 raises its batch linearly over the first 4-12 billion tokens.  Here a step's batch is the
    largest power-of-two share of the full one that the line has reached, because a batch must stay
    a binary tree of micro-batches; without ``ramp_tokens`` each step has the full batch.

    Raises:
        SettingsError: A start that is no power-of-two share of the full batch.
    """

    micro_batches: int
    start_micro_batches: int | None = None
    ramp_tokens: int = 0

    def __post_init__(self) -> None:
        start = self.start_micro_batches
        if start is None:
            return
        if start < 1 or self.micro_batches % start or not is_power_of_two(self.micro_batches // start):
            raise SettingsError(
                "train.ramp_start_sequences",
                f"a start of {start} micro-batches",
                f"{self.micro_batches} (the full batch) divided by 1, 2, 4, ...",
                "choose one of these",
            )

    def micro_batches_at(self, tokens: int) -> int:
        """Return the micro-batches of the step that starts after ``tokens`` tokens."""
        start = self.start_micro_batches
        if start is None or tokens >= self.ramp_tokens:
            return self.micro_batches
        reached = start + (self.micro_batches - start) * tokens / self.ramp_tokens
        count = start
        while count * 2 <= reached:
            count *= 2
        return count


def powers_near(number: int, least: int, most: int) -> list[int]:
    """Return the two powers of two from ``least`` to ``most`` that are nearest to a number by ratio, rising."""
    powers = [1 << exponent for exponent in range(most.bit_length()) if 1 << exponent >= least]
    return sorted(sorted(powers, key=lambda power: max(power / number, number / power))[:2])


def is_power_of_two(number: int) -> bool:
    """Say whether a number is 1, 2, 4, 8, ..."""
    return number >= 1 and number & (number - 1) == 0
