"""Completions and events as the JSON objects of OpenAI's completions API; pure functions and small state.

A ``ChoiceLogprobs`` goes along one choice, so that the pieces of a stream, put end to end, are
the arrays of the unstreamed answer.
"""

import codecs
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from cluster.serving.completions_schema import Call, ServedModel
from gpt_core.generation.request import Completion, TokenEvent, TokenLogprob
from gpt_core.tokens.tokenizer import Tokenizer


class ChoiceLogprobs:
    r"""Writes the logprobs objects of one choice: tokens, token_logprobs, top_logprobs, text_offset.

    A token that is not whole characters is written ``bytes:\xe2\x80``, so that different tokens
    keep different names. ``top_logprobs`` holds the chosen token besides the asked-for number of
    most probable ones, as OpenAI's does; its highest value is exactly the most probable token's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_characters = 0

    def write(self, entries: Iterable[TokenLogprob]) -> dict[str, list[Any]]:
        """Return the arrays of the entries that follow those already written."""
        arrays: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            name = self._name(entry.token_id)
            arrays["tokens"].append(name)
            arrays["token_logprobs"].append(entry.logprob)
            arrays["top_logprobs"].append(self._alternatives(entry, name))
            arrays["text_offset"].append(self._num_characters)
            self._num_characters += len(self._decoder.decode(self._tokenizer.decode_bytes([entry.token_id])))
        return arrays

    def _alternatives(self, entry: TokenLogprob, name: str) -> dict[str, float] | None:
        if entry.logprob is None:
            return None
        best: dict[str, float] = {}
        for token_id, logprob in entry.top:
            best.setdefault(self._name(token_id), logprob)
        best.setdefault(name, entry.logprob)
        return best

    def _name(self, token_id: int) -> str:
        data = self._tokenizer.decode_bytes([token_id])
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Reply:
    """Builds the answer to one call, whole or in chunks.

    Args:
        call: What was asked.
        model: The model that answers.
    """

    def __init__(self, call: Call, model: ServedModel) -> None:
        self._call = call
        self._model = model
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._logprobs = [ChoiceLogprobs(model.tokenizer) for _ in range(call.num_completions)]
        self._completion_tokens = 0

    def whole(self, completions: Sequence[Sequence[Completion]]) -> dict[str, Any]:
        """Return the unstreamed answer from the samples of each prompt."""
        choices = []
        for prompt, samples in enumerate(completions):
            for done in samples:
                index = self._index(prompt, done.sample)
                self._completion_tokens += len(done.token_ids)
                choices.append(self._choice(index, done.text, done.logprobs or (), done.finish_reason))
        return {**self._head, "choices": choices, "usage": self._usage()}

    def chunk(self, prompt: int, events: Sequence[TokenEvent]) -> dict[str, Any] | None:
        """Return the chunk of consecutive events of one sample, or None where they show nothing."""
        self._completion_tokens += sum(event.token_id is not None for event in events)
        done = events[-1].completion
        text = "".join(event.text for event in events)
        entries = [entry for event in events for entry in event.logprobs]
        if not (text or entries or done):
            return None
        index = self._index(prompt, events[0].sample)
        choice = self._choice(index, text, entries, done.finish_reason if done else None)
        chunk = {**self._head, "choices": [choice]}
        return {**chunk, "usage": None} if self._call.include_usage else chunk

    def last_chunk(self) -> dict[str, Any]:
        """Return the chunk that carries the usage of the whole stream."""
        return {**self._head, "choices": [], "usage": self._usage()}

    def _index(self, prompt: int, sample: int) -> int:
        return prompt * self._call.sampling.n + sample

    def _choice(
        self, index: int, text: str, entries: Iterable[TokenLogprob], finish_reason: str | None
    ) -> dict[str, Any]:
        wanted = self._call.sampling.logprobs is not None
        logprobs = self._logprobs[index].write(entries) if wanted else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._call.prompt_tokens, self._completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
