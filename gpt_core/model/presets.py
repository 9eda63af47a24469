"""The sizes of GPT-2 and GPT-3 as plain values, without torch.

Read by the settings, the planner, the model and the generation engine.  Invariant: a
``ModelShape`` that exists can be built; every mistake in it is reported when it is made.
"""

import math
from dataclasses import asdict, dataclass

from gpt_core.errors import SettingsError

GPT2_VOCABULARY_SIZE = 50257
INITIAL_SIGMA = 0.02


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides the tensors of a GPT and how they are used.

    Raises:
        SettingsError: A count below one, heads that do not divide the width, a dropout
            outside of [0, 1), or a band below one position.
    """

    n_layer: int
    n_head: int
    n_embd: int
    num_positions: int
    vocabulary_size: int
    dropout: float = 0.0
    attention_band: int | None = None
    """Positions a token sees in every second layer, itself included; None = all layers dense.
    GPT-3 alternates dense and locally banded layers (Brown et al. 2020, 2.1); its band is not published."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "num_positions", "vocabulary_size"):
            _require_count(f"model.{name}", getattr(self, name))
        if self.n_embd % self.n_head:
            raise SettingsError(
                "model.n_head",
                f"{self.n_head} heads, which do not divide n_embd {self.n_embd}",
                "a divisor of n_embd",
                f"try {_nearest_divisor(self.n_embd, self.n_head)}",
            )
        if not 0.0 <= self.dropout < 1.0:
            raise SettingsError(
                "model.dropout", f"{self.dropout}", "0 or more and less than 1", "use 0.0 to switch it off"
            )
        if self.attention_band is not None:
            _require_count("model.attention_band", self.attention_band)

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def num_block_parameters(self) -> int:
        """12 d^2 + 13 d: QKV 3d^2+3d, projection d^2+d, MLP 8d^2+5d, two LayerNorms 4d."""
        return 12 * self.n_embd**2 + 13 * self.n_embd

    @property
    def num_parameters(self) -> int:
        """V d + T d + L (12 d^2 + 13 d) + 2 d; the output head is the input embedding."""
        embeddings = (self.vocabulary_size + self.num_positions) * self.n_embd
        return embeddings + self.n_layer * self.num_block_parameters + 2 * self.n_embd

    @property
    def untrained_loss(self) -> float:
        """Expected loss at the start, ln V + d sigma^2 / 2: the logits are N(0, d sigma^2)."""
        return math.log(self.vocabulary_size) + self.n_embd * INITIAL_SIGMA**2 / 2

    def flops_a_token(self, num_tokens: int) -> float:
        """Training FLOPs a token by the PaLM convention, 6 N + 12 L d T (Chowdhery et al. 2022, appendix B).

        N leaves out the position embeddings, which are looked up and never multiplied; the token
        embedding counts, because it is also the output head.
        """
        num_multiplied = self.num_parameters - self.num_positions * self.n_embd
        return 6.0 * num_multiplied + 12.0 * self.n_layer * self.n_embd * num_tokens

    def is_banded(self, layer: int) -> bool:
        """Say whether a layer (from 0) is locally banded: the odd ones, where a band is set."""
        return self.attention_band is not None and layer % 2 == 1

    def to_dict(self) -> dict[str, int | float | None]:
        """Return the fields as plain values; ``ModelShape(**values)`` is the way back."""
        return asdict(self)


def _require_count(where: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(where, repr(value), "a whole number of 1 or more", "correct the setting")


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d))


@dataclass(frozen=True, slots=True)
class Preset:
    """A published size with the batch and peak learning rate of its paper (None: not published)."""

    shape: ModelShape
    batch_tokens: int | None = None
    peak_learning_rate: float | None = None
    note: str = ""


def _gpt2(n_layer: int, n_head: int, n_embd: int, note: str) -> Preset:
    return Preset(ModelShape(n_layer, n_head, n_embd, 1024, GPT2_VOCABULARY_SIZE), note=note)


def _gpt3(n_layer: int, n_head: int, n_embd: int, batch_tokens: int, rate: float, note: str = "") -> Preset:
    return Preset(ModelShape(n_layer, n_head, n_embd, 2048, GPT2_VOCABULARY_SIZE), batch_tokens, rate, note)


# Radford et al. 2019 table 2; Brown et al. 2020 table 2.1, with two entries put right: they
# cannot be true of the parameter counts and head widths the same table prints.
PRESETS: dict[str, Preset] = {
    "gpt2": _gpt2(12, 12, 768, "first called 117M"),
    "gpt2-medium": _gpt2(24, 16, 1024, "345M"),
    "gpt2-large": _gpt2(36, 20, 1280, "762M"),
    "gpt2-xl": _gpt2(48, 25, 1600, "1542M"),
    "gpt3-small": _gpt3(12, 12, 768, 500_000, 6.0e-4),
    "gpt3-medium": _gpt3(24, 16, 1024, 500_000, 3.0e-4),
    "gpt3-large": _gpt3(24, 16, 1536, 500_000, 2.5e-4),
    "gpt3-xl": _gpt3(24, 16, 2048, 1_000_000, 2.0e-4, "the paper prints 24 heads; 2048/128 = 16"),
    "gpt3-2.7b": _gpt3(32, 32, 2560, 1_000_000, 1.6e-4),
    "gpt3-6.7b": _gpt3(32, 32, 4096, 2_000_000, 1.2e-4),
    "gpt3-13b": _gpt3(40, 40, 5120, 2_000_000, 1.0e-4, "the paper prints width 5140; 40 heads of 128 = 5120"),
    "gpt3-175b": _gpt3(96, 96, 12288, 3_200_000, 0.6e-4),
}


def find_preset(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        SettingsError: No such preset; names the ones there are.
    """
    if name not in PRESETS:
        raise SettingsError("model.preset", repr(name), "one of " + ", ".join(PRESETS), "choose one of these")
    return PRESETS[name]
