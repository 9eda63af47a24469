"""What ``POST /v1/completions`` and ``POST /tokenize`` take: JSON values to generation requests, as pure functions.

Fields, defaults and meanings are those of OpenAI's legacy completions API, with top_k, min_p and
repetition_penalty beside them. Nothing is dropped in silence: an unknown field, or one this
service cannot honour, is refused. Knows neither Ray nor HTTP.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.serving.api_error import ApiError, invalid, refused
from gpt_core.errors import UserError
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.tokens.tokenizer import Tokenizer

MAX_STOP_STRINGS = 16
MAX_LOGPROBS = 20
# No token of GPT-2's vocabulary has more bytes than this, so a longer text cannot fit and is not even encoded.
_MAX_TOKEN_BYTES = 128
# Every call draws from the same counter, so that a prompt and a seed give one text, whatever the request's id.
_DRAW_KEY = "completions"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What requests are checked against, and answers say of the model."""

    name: str
    tokenizer: Tokenizer
    window_tokens: int
    fingerprint: str
    created: int
    """Seconds since 1970 at which the service started."""
    checkpoint: str = ""
    """SHA-256 of the weights."""
    precision: str = "fp32"
    """What the engine computes in."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was understood: a generation request for each prompt, in order."""

    requests: tuple[GenerationRequest, ...]
    stream: bool
    include_usage: bool

    @property
    def sampling(self) -> Sampling:
        """How the tokens of every prompt are drawn."""
        return self.requests[0].sampling

    @property
    def num_completions(self) -> int:
        """Choices in the answer."""
        return len(self.requests) * self.sampling.n

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(request.prompt_ids) for request in self.requests)


class Body(BaseModel):
    """Base of JSON bodies: no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream carries besides text; the obfuscation OpenAI pads its chunks with is never sent."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class CompletionsBody(Body):
    """The JSON body of a completions request; null is as good as absent."""

    model: str | None = None
    prompt: Any = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: Any = None
    echo: bool | None = None
    logprobs: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    best_of: int | None = None
    suffix: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


class TokenizeBody(Body):
    """The JSON body of a tokenize request."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool = False


_B = TypeVar("_B", bound=Body)


def parse_completions(value: object, model: ServedModel, max_completions: int) -> Call:
    """Return what a JSON body asks for.

    Args:
        value: The parsed body.
        model: The model that is served.
        max_completions: Most prompts times n of one request.

    Raises:
        ApiError: 404 for another model's name, else 400, naming the field.
    """
    body = checked(CompletionsBody, value)
    check_model(body.model, model)
    _refuse_unsupported(body)
    sampling = _sampling(body)
    prompts = _prompts(body.prompt, model.tokenizer)
    if len(prompts) * sampling.n > max_completions:
        found = f"{len(prompts)} prompts times n {sampling.n}"
        raise invalid("n" if sampling.n > 1 else "prompt", f"{found} is over the {max_completions} completions allowed")
    requests = tuple(
        GenerationRequest(str(index), _prompt_ids(prompt, index, model), sampling, _draw_key(body, index))
        for index, prompt in enumerate(prompts)
    )
    options = body.stream_options
    return Call(requests, body.stream or False, options is not None and options.include_usage)


def parse_tokenize(value: object, model: ServedModel) -> list[int]:
    """Return the token ids of the text in a JSON body.

    Raises:
        ApiError: A field is missing, unknown or of another type.
    """
    body = checked(TokenizeBody, value)
    check_model(body.model, model)
    return _ids(body.prompt, model)


def check_model(name: str | None, model: ServedModel) -> None:
    """Raise ApiError 404 where a request names another model."""
    if name is not None and name != model.name:
        message = f"model {name!r} is not served here; the model is {model.name!r}"
        raise ApiError(404, message, "model", "model_not_found")


def parse_prompt(value: object, model: ServedModel) -> tuple[int, ...]:
    """Return the token ids of one prompt, given as text, as ids, or as nothing: the beginning of a document.

    Raises:
        ApiError: It is something else, or does not fit into the model's window.
    """
    prompts = _prompts(value, model.tokenizer)
    if len(prompts) != 1:
        raise invalid("prompt", f"prompt: found {len(prompts)} prompts; expected one")
    return _prompt_ids(prompts[0], 0, model)


def checked(schema: type[_B], value: object) -> _B:
    """Return a parsed body as an object of its schema.

    Raises:
        ApiError: A field is missing, unknown or of another type.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _first_mistake(error) from error


def _first_mistake(error: ValidationError) -> ApiError:
    mistake = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(map(str, mistake["loc"])) or None
    if mistake["type"] == "extra_forbidden":
        return invalid(field, f"{field}: no such field", "unknown_field")
    return invalid(field, f"{field or 'the body'}: {mistake['msg']}")


def _refuse_unsupported(body: CompletionsBody) -> None:
    if body.best_of not in {None, body.n or 1}:
        raise invalid("best_of", f"best_of: found {body.best_of}; only the value of n is supported")
    for name, harmless in (("suffix", ""), ("presence_penalty", 0), ("frequency_penalty", 0), ("logit_bias", {})):
        if getattr(body, name) not in (None, harmless):
            raise invalid(name, f"{name}: not supported by this service; leave it out", "unsupported_field")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options: allowed only together with stream true")


def _sampling(body: CompletionsBody) -> Sampling:
    if body.logprobs is not None and body.logprobs > MAX_LOGPROBS:
        raise invalid("logprobs", f"logprobs: found {body.logprobs}; expected at most {MAX_LOGPROBS}")
    try:
        return Sampling(
            max_tokens=16 if body.max_tokens is None else body.max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            stop=_stop_strings(body.stop),
            n=1 if body.n is None else body.n,
            seed=secrets.randbits(63) if body.seed is None else body.seed,
            logprobs=body.logprobs,
            echo=body.echo or False,
        )
    except UserError as error:
        raise refused(error) from error


def _draw_key(body: CompletionsBody, index: int) -> str:
    """Return what draws are keyed by: without a seed of the client's, prompts alike get texts of their own."""
    return f"{_DRAW_KEY}/{index}" if body.seed is None else _DRAW_KEY


def _stop_strings(value: object) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
        raise invalid("stop", "stop: expected a string or a list of strings, none of them empty")
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid("stop", f"stop: found {len(strings)} strings; expected at most {MAX_STOP_STRINGS}")
    return tuple(strings)


def _prompts(value: Any, tokenizer: Tokenizer) -> Sequence[str | list[int]]:
    """Return the prompts of any of the four forms; no prompt at all is the beginning of a document."""
    if value is None:
        return [[tokenizer.end_of_text]]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value) or all(_is_ids(item) for item in value):
            return value
        if _is_ids(value):
            return [value]
    raise invalid("prompt", "prompt: expected a text, a list of texts, a list of token ids, or a list of such lists")


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _prompt_ids(prompt: str | list[int], index: int, model: ServedModel) -> tuple[int, ...]:
    if prompt == "":
        return (model.tokenizer.end_of_text,)
    ids = _encoded(prompt, index, model) if isinstance(prompt, str) else prompt
    if not ids:
        raise invalid("prompt", f"prompt {index}: found no token ids; expected 1 or more")
    if len(ids) > model.window_tokens:
        raise _too_long(index, f"{len(ids):,} tokens", model)
    highest = model.tokenizer.vocabulary_size - 1
    unknown = next((token for token in ids if not 0 <= token <= highest), None)
    if unknown is not None:
        raise invalid("prompt", f"prompt {index}: found token id {unknown}; expected ids of 0 to {highest}")
    return tuple(ids)


def _encoded(text: str, index: int, model: ServedModel) -> list[int]:
    if len(text) > model.window_tokens * _MAX_TOKEN_BYTES:
        raise _too_long(index, f"{len(text):,} characters", model)
    return _ids(text, model)


def _ids(text: str, model: ServedModel) -> list[int]:
    try:
        return model.tokenizer.encode_prompt(text).tolist()
    except UserError as error:  # a word that is none of a vocabulary of words
        raise refused(error) from error


def _too_long(index: int, found: str, model: ServedModel) -> ApiError:
    message = (
        f"prompt {index}: found {found}; expected at most the {model.window_tokens:,} tokens of the model's window"
    )
    return invalid("prompt", message, "context_length_exceeded")
