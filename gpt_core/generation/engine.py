"""Continuous batching over a fixed number of slots: requests join and leave between steps.

Driven by one thread that calls ``step`` while the engine is ``busy``: a server's replica, the
offline job, or ``run``. Invariant: the tokens, text and log-probabilities of a request are the
same bits alone and in any company, whatever the order of arrival, the number of slots and the
prefill budget, on one machine with one number of torch threads.

A step admits waiting samples (first come, first served) to the lowest free slots, prefills a
bounded number of prompt chunks, and draws one token for every sample whose prompt is stored; on a GPU
those of the next step may be drawn ahead, which samples that have joined meanwhile miss.
Samples of one request prefill their prompt once and copy the cache.

Window: a prompt holds 1 to ``window`` tokens (a longer one is refused, never cut), and
max_tokens is clipped to ``window - prompt + 1``, the last token drawn needing no position;
a sample that meets this limit finishes with "length".
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpt_core.errors import CheckpointError, ResourceError, UserError
from gpt_core.generation.decode_graphs import DecodeGraphs
from gpt_core.generation.decoder import CHUNK_TOKENS, Chunk
from gpt_core.generation.drawing import Drawn, drawn_tokens
from gpt_core.generation.kv_cache import GROWTH_POSITIONS, KVCache, round_up
from gpt_core.generation.linear_kernels import can_compute_int8
from gpt_core.generation.request import Completion, GenerationRequest, TokenEvent
from gpt_core.generation.sampling import MAX_VOCABULARY, draw, draws_without_waiting, token_logprobs
from gpt_core.generation.self_check import ShapeClasses, Target, checked_decoder
from gpt_core.generation.sequence import Sequence
from gpt_core.generation.step_ahead import NO_TOKEN, Row, StepAhead
from gpt_core.model.precision import can_compute_bf16, choose_dtype
from gpt_core.model.presets import ModelShape

if TYPE_CHECKING:
    from gpt_core.tokens.tokenizer import Tokenizer

_NOT_FINITE = "the model's logits are not finite; its weights are damaged"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much the engine does at once; none of it changes a result but ``precision`` and ``device``."""

    slots: int = 64
    """Samples computed at the same time."""
    window_tokens: int | None = None
    """Positions a sample can take; None = the model's own number."""
    prefill_chunks: int = 4
    """Most prompt chunks of 32 tokens a step stores: more finishes prompts sooner, and makes
    the samples that are already being drawn wait longer for their next token."""
    precision: str = "auto"
    """"fp32", "bf16", "auto" (bf16 where the device has instructions for it) or "int8": products with weights, on
    a CPU with VNNI; attention in bf16 where that has instructions."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("slots", "window_tokens", "prefill_chunks"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"engine.{name}", f"{value}", "1 or more", "correct the value")


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Where the engine stands, and what it has done since it was made."""

    num_waiting: int
    """Samples without a slot."""
    num_slots: int
    num_slots_in_use: int
    num_steps: int
    prefilled_tokens: int
    drawn_tokens: int
    copied_tokens: int
    """Prompt tokens taken over from another sample of the request instead of computed."""
    cache_bytes: int
    classes: ShapeClasses


class Engine:
    """A model that continues prompts. Not thread-safe: one thread at a time.

    Args:
        weights: fp32 tensors under the parameter names of ``model.GPT``; not changed, and not kept.
        shape: The model's sizes. Ids past the tokenizer's vocabulary are padding and cut off.
        tokenizer: Turns drawn ids into text.
        options: See ``EngineOptions``.

    Raises:
        CheckpointError: The model has fewer ids than the tokenizer, or more than can be drawn from.
        ResourceError: The device cannot compute in the precision asked for.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        shape: ModelShape,
        tokenizer: "Tokenizer",
        options: EngineOptions | None = None,
    ) -> None:
        self.options = options or EngineOptions()
        self.tokenizer = tokenizer
        weights, shape = _without_padding(weights, shape, tokenizer)
        self.window_tokens = min(self.options.window_tokens or shape.num_positions, shape.num_positions)
        num_positions = round_up(self.window_tokens, GROWTH_POSITIONS)
        device = torch.device(self.options.device)
        target = _target(self.options.precision, device)
        self._decoder, self.classes = checked_decoder(weights, shape, num_positions, self.options.slots, target)
        self._steps = DecodeGraphs(self._decoder) if device.type == "cuda" else self._decoder
        self._goes_ahead = device.type != "cpu"  # a CPU would only wait for itself
        self._ahead: StepAhead | None = None
        self._block_rows = _smallest_holding(self.classes.rows, self.options.slots)
        self._cache = KVCache(
            shape,
            round_up(self.options.slots, self._block_rows),
            num_positions,
            self._decoder.dtype,
            self._decoder.device,
        )
        self._slots: list[Sequence | None] = [None] * self.options.slots
        self._waiting: deque[Sequence] = deque()
        self._admitted: list[Sequence] = []
        self._unfinished: dict[str, int] = {}
        self._num_steps = self._prefilled_tokens = self._drawn_tokens = self._copied_tokens = 0

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._admitted)

    def submit(self, request: GenerationRequest) -> None:
        """Queue every sample of a request behind those already there.

        Raises:
            UserError: The prompt is empty, longer than the window or holds an unknown id; or the
                id is that of a request still in the engine. The engine is unchanged then.
        """
        self._check(request)
        room = self.window_tokens - len(request.prompt_ids) + 1
        max_tokens = min(request.sampling.max_tokens, room)
        self._unfinished[request.id] = request.sampling.n
        self._waiting.extend(
            Sequence(request, sample, self.tokenizer, max_tokens) for sample in range(request.sampling.n)
        )

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """Do one round of work and return what it added to each sample, in order of admission."""
        self._num_steps += 1
        self._admit()
        self._prefill()
        ready = [sequence for sequence in self._admitted if sequence.is_prefilled]
        events = [self._end_after_prompt(sequence) for sequence in ready if sequence.ends_after_prompt]
        drawing = [sequence for sequence in ready if not sequence.ends_after_prompt]
        if drawing:
            events += self._draw_tokens(drawing)
        for event in events:
            if event.completion is not None:
                is_damaged = event.completion.finish_reason == "error"
                self._leave(event.request_id, event.sample, is_damaged=is_damaged)
        return events

    def cancel(self, request_id: str) -> bool:
        """Drop a request; no event of it follows. Returns whether it was in the engine."""
        if self._unfinished.pop(request_id, None) is None:
            return False
        self._waiting = deque(waiting for waiting in self._waiting if waiting.request.id != request_id)
        for sequence in [admitted for admitted in self._admitted if admitted.request.id == request_id]:
            self._cache.clear(self._free(sequence))  # its next token might have been found not to be finite
        return True

    def run(self, requests: Iterable[GenerationRequest]) -> list[Completion]:
        """Finish all requests and return their completions in the order of requests, then samples.

        A request that ``submit`` refuses has one completion, with finish reason "error".
        """
        order: list[str] = []
        done: dict[str, list[Completion]] = {}
        refused: list[tuple[int, Completion]] = []
        for request in requests:
            try:
                self.submit(request)
                order.append(request.id)
            except UserError as error:
                refused.append((len(order) + len(refused), _refusal(request, str(error))))
        while self.busy:
            for event in self.step():
                if event.completion is not None:
                    done.setdefault(event.request_id, []).append(event.completion)
        groups = [sorted(done[request_id], key=lambda item: item.sample) for request_id in order]
        for place, completion in refused:
            groups.insert(place, [completion])
        return [completion for group in groups for completion in group]

    def statistics(self) -> EngineStatistics:
        """Return the present numbers."""
        return EngineStatistics(
            num_waiting=len(self._waiting),
            num_slots=len(self._slots),
            num_slots_in_use=len(self._admitted),
            num_steps=self._num_steps,
            prefilled_tokens=self._prefilled_tokens,
            drawn_tokens=self._drawn_tokens,
            copied_tokens=self._copied_tokens,
            cache_bytes=self._cache.num_bytes,
            classes=self.classes,
        )

    def _check(self, request: GenerationRequest) -> None:
        where, num_tokens = f"request {request.id!r}", len(request.prompt_ids)
        vocabulary_size = self._decoder.shape.vocabulary_size
        if request.id in self._unfinished:
            raise UserError(where, "the same id as a request in progress", "an id of its own", "change the id")
        if not 1 <= num_tokens <= self.window_tokens:
            raise UserError(
                where,
                f"a prompt of {num_tokens} tokens",
                f"1 to {self.window_tokens}, the model's window",
                "shorten the prompt" if num_tokens else "begin with the end-of-text token",
            )
        unknown = next((i for i in request.prompt_ids if not 0 <= i < vocabulary_size), None)
        if unknown is not None:
            raise UserError(where, f"token id {unknown}", f"ids of 0 to {vocabulary_size - 1}", "correct it")

    def _admit(self) -> None:
        while self._waiting and len(self._admitted) < len(self._slots):
            sequence = self._waiting.popleft()
            sequence.slot = self._slots.index(None)
            self._slots[sequence.slot] = sequence
            self._admitted.append(sequence)
            self._cache.block_of(sequence.slot)[0].reserve(round_up(sequence.num_to_prefill, CHUNK_TOKENS))

    def _prefill(self) -> None:
        chunks: list[tuple[Sequence, Chunk]] = []
        for sequence in self._admitted:
            if not sequence.is_prefilled and self._first_of_request(sequence) is sequence:
                starts = range(sequence.num_stored, sequence.num_to_prefill, CHUNK_TOKENS)
                left = self.options.prefill_chunks - len(chunks)
                chunks += [(sequence, sequence.next_chunk(start)) for start in starts[:left]]
        most = self.classes.chunks[-1]
        for start in range(0, len(chunks), most):
            self._prefill_pass(chunks[start : start + most])
        for sequence in self._admitted:
            if not sequence.is_prefilled:
                self._copy_prompt(sequence, self._first_of_request(sequence))

    def _first_of_request(self, sequence: Sequence) -> Sequence:
        """Return the sample of the same request that was admitted first of those still here."""
        return next(other for other in self._admitted if other.request is sequence.request)

    def _prefill_pass(self, chunks: list[tuple[Sequence, Chunk]]) -> None:
        num_chunks = _smallest_holding(self.classes.chunks, len(chunks))
        x_PTC = self._decoder.prefill(self._cache, [chunk for _, chunk in chunks], num_chunks)
        for x_TC, (sequence, chunk) in zip(x_PTC, chunks, strict=False):
            if sequence.wants_prompt_logprobs:
                self._add_prompt_logprobs(x_TC, sequence, chunk)
            sequence.num_stored += len(chunk.ids)
            self._prefilled_tokens += len(chunk.ids)

    def _add_prompt_logprobs(self, x_TC: Tensor, sequence: Sequence, chunk: Chunk) -> None:
        following = sequence.request.prompt_ids[chunk.start + 1 : chunk.start + 1 + len(chunk.ids)]
        logits_TV = self._decoder.prompt_logits(x_TC)[: len(following)]
        if not torch.isfinite(logits_TV.amax(-1)).all():
            sequence.is_damaged = True
            return
        counts = [sequence.request.sampling.logprobs or 0] * len(following)
        sequence.add_prompt_logprobs(token_logprobs(logits_TV, following, counts))

    def _copy_prompt(self, sequence: Sequence, source: Sequence) -> None:
        if source is sequence or not source.is_prefilled:
            return
        assert source.slot is not None
        assert sequence.slot is not None
        self._cache.copy_prefix(source.slot, sequence.slot, sequence.num_to_prefill)
        sequence.num_stored = sequence.num_to_prefill
        sequence.copy_prompt_logprobs(source)
        self._copied_tokens += sequence.num_to_prefill

    def _end_after_prompt(self, sequence: Sequence) -> TokenEvent:
        sequence.finish_prompt()
        return sequence.fail(_NOT_FINITE) if sequence.is_damaged else sequence.end_after_prompt()

    def _draw_tokens(self, sequences: list[Sequence]) -> list[TokenEvent]:
        """Draw for those of a step begun ahead, else for all; who has joined since is in the next one."""
        drawn = self._drawn_ahead(sequences) or self._drawn_now(sequences)
        self._ahead = self._start_ahead(sequences, drawn) if self._goes_ahead else None
        events = []
        for sequence, (token, logprob) in drawn.items():
            sequence.num_stored = sequence.position + 1
            sequence.finish_prompt()
            self._drawn_tokens += token is not None
            events.append(sequence.fail(_NOT_FINITE) if token is None else sequence.add_token(token, logprob))
        return events

    def _drawn_ahead(self, sequences: list[Sequence]) -> dict[Sequence, Drawn]:
        tokens = {} if self._ahead is None else self._ahead.tokens_by_sample()
        return {sequence: (tokens[sequence], None) for sequence in sequences if sequence in tokens}

    def _drawn_now(self, sequences: list[Sequence]) -> dict[Sequence, Drawn]:
        return drawn_tokens(
            self._decode([(sequence, sequence.last_id, sequence.position) for sequence in sequences]), sequences
        )

    def _start_ahead(self, sequences: list[Sequence], drawn: dict[Sequence, Drawn]) -> StepAhead | None:
        """Give the device the next step of those that go on, while it is not waited for, if it needs nobody."""
        rows: list[Row] = []
        for sequence in sequences:
            token = drawn[sequence][0] if sequence in drawn else sequence.last_id
            position = sequence.position + (sequence in drawn)
            if token is not None and (sequence not in drawn or sequence.goes_on_after(token)):
                rows.append((sequence, token, position))
        plans = [sequence.plan for sequence, _, _ in rows]
        if not rows or not all(map(_can_be_ahead, sequences)) or not draws_without_waiting(plans):
            return None
        logits_RV = self._decode(rows)
        tokens_R = draw(logits_RV, plans, [position + 1 for _, _, position in rows])
        return StepAhead(rows, torch.where(torch.isfinite(logits_RV.amax(-1)), tokens_R, NO_TOKEN))

    def _decode(self, rows: list[Row]) -> Tensor:
        """Return logits_RV, a row for each of ``rows``, from steps over whole classes of slots."""
        tokens, positions, slots = [0] * self._cache.num_slots, [0] * self._cache.num_slots, list[int]()
        for sequence in self._admitted:
            assert sequence.slot is not None
            # A slot still prefilling takes part, too: what it stores here its next chunk overwrites.
            positions[sequence.slot] = sequence.num_stored
        for sequence, token, position in rows:
            assert sequence.slot is not None
            tokens[sequence.slot], positions[sequence.slot] = token, position
            slots.append(sequence.slot)
        highest = max(slots) + 1
        blocks = []
        for start in range(0, highest, self._block_rows):
            stop = start + _smallest_holding(self.classes.rows, min(highest - start, self._block_rows))
            tokens_R, positions_R = (torch.tensor(values[start:stop]) for values in (tokens, positions))
            slots_R = range(start, stop)
            blocks.append(self._steps.decode(self._cache, tokens_R, positions_R, slots_R, self.classes.key_step))
        logits_SV = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return logits_SV if slots == list(range(len(logits_SV))) else logits_SV[slots]

    def _leave(self, request_id: str, sample: int, *, is_damaged: bool) -> None:
        sequence = next(other for other in self._admitted if other.sample == sample and other.request.id == request_id)
        slot = self._free(sequence)
        # What a step ahead stored for it may not be finite either; nobody waits to know.
        if is_damaged or (self._ahead is not None and sequence in self._ahead):
            self._cache.clear(slot)
        self._unfinished[request_id] -= 1
        if not self._unfinished[request_id]:
            del self._unfinished[request_id]

    def _free(self, sequence: Sequence) -> int:
        """Take a sequence out of its slot and return the slot."""
        assert sequence.slot is not None
        self._slots[sequence.slot] = None
        self._admitted.remove(sequence)
        if self._decoder.device.type == "cpu":  # a GPU's recorded steps know the addresses
            block, _ = self._cache.block_of(sequence.slot)
            block.trim(max((other.num_needed for other in self._admitted if other.slot in block.slots), default=0))
        return sequence.slot


def _without_padding(
    weights: Mapping[str, Tensor], shape: ModelShape, tokenizer: "Tokenizer"
) -> tuple[Mapping[str, Tensor], ModelShape]:
    num_ids = tokenizer.vocabulary_size
    if not num_ids <= shape.vocabulary_size <= MAX_VOCABULARY:
        raise CheckpointError(
            "model vocabulary",
            f"{shape.vocabulary_size} ids",
            f"{num_ids} (tokenizer {tokenizer.name!r}) to {MAX_VOCABULARY}",
            "use the tokenizer the model was trained with",
        )
    if num_ids == shape.vocabulary_size:
        return weights, shape
    cut = {**weights, "wte.weight": weights["wte.weight"][:num_ids]}
    return cut, replace(shape, vocabulary_size=num_ids)


def _target(precision: str, device: torch.device) -> Target:
    if precision != "int8":
        return Target(device, choose_dtype(precision, device))
    if not can_compute_int8(device):
        found = f"int8 on a {device.type} without fast and exact products of it"
        raise ResourceError("engine.precision", found, "a CPU with VNNI instructions", "use auto")
    return Target(device, torch.bfloat16 if can_compute_bf16(device) else torch.float32, is_int8=True)


def _smallest_holding(classes: tuple[int, ...], count: int) -> int:
    """Return the smallest class of at least ``count``, or the largest there is."""
    return next((size for size in classes if size >= count), classes[-1])


def _can_be_ahead(sequence: Sequence) -> bool:
    """Say whether the next token needs nothing but logits, and nothing of them but the token."""
    return sequence.plan.repetition_penalty is None and sequence.request.sampling.logprobs is None


def _refusal(request: GenerationRequest, error: str) -> Completion:
    return Completion(request.id, 0, "", request.prompt_ids, (), "error", None, error)
