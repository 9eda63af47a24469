"""What a caller asks of the engine and what comes back: plain frozen values, no torch.

Made by the server, the offline job and tests; read by the engine. Invariant: a ``Sampling``
that exists is valid, so the engine never meets a setting out of range.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from gpt_core.errors import UserError

FinishReason = Literal["stop", "length", "error"]
MAX_SAMPLES = 1024
MAX_ALTERNATIVES = 1024
# Draws scale float32 logits: outside these limits differences of logits overflow, or become 0/0.
MIN_TEMPERATURE = 1e-30
MAX_TEMPERATURE = 1e30
MIN_REPETITION_PENALTY = 1e-3
MAX_REPETITION_PENALTY = 100.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of a request are chosen and when they end.

    Filters work in the order repetition penalty, temperature, top_k, top_p, min_p.

    Raises:
        UserError: A value of the wrong type or out of its range; names the field.
    """

    max_tokens: int = 64
    """Most tokens drawn for a sample; 0 only with echo. Clipped to what fits in the context."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token, else MIN_TEMPERATURE to MAX_TEMPERATURE."""
    top_k: int | None = None
    """Keep this many most probable tokens; 1 is greedy."""
    top_p: float | None = None
    """Keep the fewest most probable tokens that hold this share of the probability."""
    min_p: float | None = None
    """Keep tokens at least this probable in proportion to the most probable one."""
    repetition_penalty: float | None = None
    """Divides positive and multiplies negative logits of tokens in prompt or output (Keskar et al. 2019)."""
    stop: tuple[str, ...] = ()
    """Strings before which the text is cut; searched in the generated text alone."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end a sample; the id is in token_ids, its text is not in the text."""
    n: int = 1
    """Samples drawn of the prompt."""
    seed: int = 0
    logprobs: int | None = None
    """Alternatives reported with each token's log-probability; 0 reports the token's alone."""
    echo: bool = False
    """Begin the text, and the logprobs, with the prompt."""
    stop_at_end_of_text: bool = True

    def __post_init__(self) -> None:
        _require_whole("max_tokens", self.max_tokens, 0)
        _require_number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            raise _bad("temperature", self.temperature, f"0, or a number of {MIN_TEMPERATURE:g} or more")
        _require_whole("n", self.n, 1, MAX_SAMPLES)
        _require_whole("seed", self.seed, -(2**63), 2**63 - 1)
        self._check_filters()
        self._check_stops()
        for name in ("echo", "stop_at_end_of_text"):
            if not isinstance(getattr(self, name), bool):
                raise _bad(name, getattr(self, name), "true or false")
        if self.max_tokens == 0 and not self.echo:
            raise _bad("max_tokens", 0, "1 or more, or 0 together with echo")

    def _check_filters(self) -> None:
        if self.top_k is not None:
            _require_whole("top_k", self.top_k, 1)
        if self.logprobs is not None:
            _require_whole("logprobs", self.logprobs, 0, MAX_ALTERNATIVES)
        if self.top_p is not None:
            _require_number("top_p", self.top_p, 0.0, 1.0, lowest_allowed=False)
        if self.min_p is not None:
            _require_number("min_p", self.min_p, 0.0, 1.0)
        if self.repetition_penalty is not None:
            _require_number(
                "repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY
            )

    def _check_stops(self) -> None:
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            raise _bad("stop", self.stop, "a tuple of strings, none of them empty")
        if not isinstance(self.stop_ids, tuple):
            raise _bad("stop_ids", self.stop_ids, "a tuple of token ids")
        for token_id in self.stop_ids:
            _require_whole("stop_ids", token_id, 0)


def sampling_with(base: Sampling, changes: Mapping[str, Any]) -> Sampling:
    """Return ``base`` with the fields of a parsed JSON object put over it.

    Lists become tuples, and one string for ``stop`` a tuple of it. None leaves the base's value.

    Raises:
        UserError: An unknown field or a value out of range.
    """
    known = [entry.name for entry in fields(Sampling)]
    given = {name: _as_tuple(value) for name, value in changes.items() if value is not None}
    for name in changes:
        if name not in known:
            raise UserError("sampling", f"field {name!r}", "one of " + ", ".join(known), "correct the name")
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    return replace(base, **given)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to be continued ``sampling.n`` times.

    ``key`` takes the place of ``id`` in what the draws are keyed by, for callers whose ids are
    made up anew for every call and whose users expect one seed to give one text.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    key: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability under the unmodified distribution, and the best alternatives.

    ``logprob`` is None, and ``top`` empty, for the first token of a prompt, which nothing predicts.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability), most probable first, equal ones by id."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sample.

    ``token_ids`` holds every token drawn, an ending one included, and never the prompt;
    ``logprobs`` has one entry for each, after one for each prompt token where echo was asked.
    """

    request_id: str
    sample: int
    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one engine step added to one sample; events' texts and logprobs add up to the completion's.

    ``token_id`` is None in an event that brings no new token (the echo of a prompt with
    max_tokens 0). ``completion`` is there in the last event of a sample.
    """

    request_id: str
    sample: int
    token_id: int | None
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _require_whole(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    limit = f"a whole number of {lowest} or more" + ("" if highest is None else f", at most {highest}")
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise _bad(name, value, limit)
    if highest is not None and value > highest:
        raise _bad(name, value, limit)


def _require_number(name: str, value: object, lowest: float, highest: float, *, lowest_allowed: bool = True) -> None:
    limit = f"a finite number {'of' if lowest_allowed else 'over'} {lowest:g}"
    limit += f"{' or more' if lowest_allowed else ''}, at most {highest:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(name, value, limit)
    if not lowest <= value <= highest or (value == lowest and not lowest_allowed):
        raise _bad(name, value, limit)


def _bad(name: str, found: object, expected: str) -> UserError:
    return UserError(f"sampling.{name}", repr(found), expected, "correct the value")
