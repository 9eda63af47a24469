"""One sample on its way through the engine: what was drawn, what was shown, and when it ends.

Made and driven by the engine; knows nothing of slots' tensors or of other samples.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpt_core.generation.decoder import CHUNK_TOKENS, Chunk
from gpt_core.generation.kv_cache import round_up
from gpt_core.generation.request import Completion, FinishReason, GenerationRequest, TokenEvent, TokenLogprob
from gpt_core.generation.sampling import DrawPlan, plan_draws
from gpt_core.generation.stop_strings import TextStream

if TYPE_CHECKING:
    from gpt_core.tokens.tokenizer import Tokenizer


@dataclass(eq=False, slots=True)
class Sequence:
    """Prompt and output of one sample.

    The last prompt token goes through the first decode step, so that every new token's logits come from
    the same kind of step; ``num_stored`` positions are in the cache, at most all tokens but the last.
    """

    request: GenerationRequest
    sample: int
    tokenizer: "Tokenizer"
    max_tokens: int
    slot: int | None = None
    num_stored: int = 0
    is_damaged: bool = False
    """Whether the prompt's logits were not finite."""
    output_ids: list[int] = field(default_factory=list)
    num_to_prefill: int = field(init=False)
    """Prompt tokens the cache must hold before the first decode step."""
    plan: DrawPlan = field(init=False)
    _stream: TextStream = field(init=False)
    _unsent_echo: str = ""
    _pieces: list[str] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)
    _unsent_logprobs: int = 0

    def __post_init__(self) -> None:
        self.num_to_prefill = len(self.request.prompt_ids) - 1
        self.plan = plan_draws(self.request, self.sample)
        self._stream = TextStream(self.request.sampling.stop)
        if self.request.sampling.echo:
            self._unsent_echo = self.tokenizer.decode(self.request.prompt_ids)

    @property
    def is_prefilled(self) -> bool:
        """Whether the next step can draw a token."""
        return self.num_stored >= self.num_to_prefill

    @property
    def num_needed(self) -> int:
        """Positions the cache must hold for the next step, and for the whole prompt while that is being stored."""
        return max(self.position + 1, round_up(self.num_to_prefill, CHUNK_TOKENS))

    @property
    def ends_after_prompt(self) -> bool:
        """Whether no token is to be drawn."""
        return self.max_tokens == 0 or self.is_damaged

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the prompt's logits are needed."""
        return self.request.sampling.echo and self.request.sampling.logprobs is not None

    @property
    def last_id(self) -> int:
        """The token the next one is drawn after."""
        return self.output_ids[-1] if self.output_ids else self.request.prompt_ids[-1]

    @property
    def position(self) -> int:
        """Where the last token is stored by the next decode step; the drawn one comes after it."""
        return self.num_to_prefill + len(self.output_ids)

    def next_chunk(self, start: int) -> Chunk:
        """Return the chunk of prompt tokens from ``start``."""
        assert self.slot is not None
        end = min(start + CHUNK_TOKENS, self.num_to_prefill)
        return Chunk(self.slot, start, self.request.prompt_ids[start:end])

    def seen_ids(self) -> list[int]:
        """Return the distinct ids of prompt and output, for the repetition penalty."""
        return sorted({*self.request.prompt_ids, *self.output_ids})

    def add_prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        """Take the log-probabilities of the prompt tokens that follow those already known."""
        if not self._logprobs:
            self._logprobs.append(TokenLogprob(self.request.prompt_ids[0], None))
        self._logprobs += entries

    def copy_prompt_logprobs(self, source: "Sequence") -> None:
        """Take over what another sample of the request knows of the prompt."""
        if self.wants_prompt_logprobs:
            self._logprobs = source._logprobs[: len(self.request.prompt_ids)]
            self.is_damaged = source.is_damaged

    def finish_prompt(self) -> None:
        """Give a prompt of one token, which no chunk holds, its log-probability entry."""
        if self.wants_prompt_logprobs and not self._logprobs:
            self.add_prompt_logprobs([])

    def end_after_prompt(self) -> TokenEvent:
        """Return the only event of a sample that draws nothing."""
        return self._event(None, "", "length")

    def goes_on_after(self, token_id: int) -> bool:
        """Say whether a token is drawn after this one, unless it completes a stop string."""
        return len(self.output_ids) + 1 < self.max_tokens and not self._is_ending(token_id)

    def add_token(self, token_id: int, logprob: TokenLogprob | None) -> TokenEvent:
        """Take a drawn token and return what it adds to the text, with the completion if it is the last."""
        self.output_ids.append(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        if self._is_ending(token_id):
            return self._event(token_id, self._stream.finish(), "stop")
        text = self._stream.push(self.tokenizer.decode_bytes([token_id]))
        if not self._stream.stopped and len(self.output_ids) < self.max_tokens:
            return self._event(token_id, text, None)
        text += self._stream.finish()
        return self._event(token_id, text, "stop" if self._stream.stopped else "length")

    def fail(self, error: str) -> TokenEvent:
        """Return the last event of a sample that cannot go on; its completion has no log-probabilities."""
        self._unsent_logprobs = len(self._logprobs)
        return self._event(None, self._stream.finish(), "error", error)

    def _is_ending(self, token_id: int) -> bool:
        sampling = self.request.sampling
        is_end_of_text = sampling.stop_at_end_of_text and token_id == self.tokenizer.end_of_text
        return is_end_of_text or token_id in sampling.stop_ids

    def _event(
        self, token_id: int | None, text: str, finish_reason: FinishReason | None, error: str | None = None
    ) -> TokenEvent:
        shown, self._unsent_echo = self._unsent_echo + text, ""
        self._pieces.append(shown)
        entries = tuple(self._logprobs[self._unsent_logprobs :])
        self._unsent_logprobs = len(self._logprobs)
        completion = None if finish_reason is None else self._completion(finish_reason, error)
        return TokenEvent(self.request.id, self.sample, token_id, shown, entries, completion)

    def _completion(self, finish_reason: FinishReason, error: str | None) -> Completion:
        has_logprobs = self.request.sampling.logprobs is not None and error is None
        return Completion(
            self.request.id,
            self.sample,
            "".join(self._pieces),
            self.request.prompt_ids,
            tuple(self.output_ids),
            finish_reason,
            tuple(self._logprobs) if has_logprobs else None,
            error,
        )
