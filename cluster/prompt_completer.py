"""The worker of `herd generate`: a range of prompts in, one committed file of completions out.

It lives in an actor and computes nothing: its prompts go to the replicas of a Generator deployment, or to
a service elsewhere, a bounded number at a time. A call whose replica died, or whose engine failed, is sent again and
gives the same text.
"""

import functools
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from cluster.serving.service_client import Service, ServiceCalls
from gpt_core.digests import xxh3_128_hex
from gpt_core.documents.source_files import SourceFile
from gpt_core.errors import RunFailedError, UserError
from gpt_core.generation.prompts import Prompt, PromptRange, RejectedPrompt, read_range
from gpt_core.generation.request import Completion, GenerationRequest, Sampling
from gpt_core.ledger import Row
from gpt_core.storage import Storage
from gpt_core.tokens.tokenizer import load_tokenizer

_PROMPTS_PER_CALL = 8
# Ray Serve takes a replica whose engine failed out of use after three health checks, two seconds apart.
_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0)
_SAMPLES = 3

_ALTERNATIVE = pa.struct([("token_id", pa.int32()), ("logprob", pa.float32())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("logprobs", pa.list_(pa.float32())),
        ("top_logprobs", pa.list_(pa.list_(_ALTERNATIVE))),
        ("checkpoint", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Completing:
    """What the workers of one job share.

    Attributes:
        folder: The dataset's.
        file_format: "jsonl" or "arrow".
        application: Name of the Ray Serve application to call, where no service is.
        service: The `herd serve` to call.
        tokenizer: The checkpoint's.
        checkpoint: The digest of its weights, written into every row.
        files: The prompt files.
        sampling: For what a row does not say itself.
        prompts_in_flight: Sent and not answered, at most, a worker.
    """

    folder: str
    file_format: str
    application: str
    service: Service | None
    tokenizer: str
    checkpoint: str
    files: tuple[SourceFile, ...]
    sampling: Sampling
    prompts_in_flight: int


_Asked = tuple[Prompt, GenerationRequest]


class PromptCompleter:
    """Completes ranges of prompts; one an actor."""

    def __init__(self, completing: Completing) -> None:
        self._job = completing
        self._storage = Storage.of(completing.folder)
        self._tokenizer = load_tokenizer(completing.tokenizer)
        self._num_calls = max(-(-completing.prompts_in_flight // _PROMPTS_PER_CALL), 2)
        service = completing.service
        self._calls = ServiceCalls(service, self._num_calls) if service else _ReplicaCalls(completing.application)

    def __call__(self, plan: tuple[int, PromptRange]) -> Row:
        """Write rows/NNNNNNNN.jsonl (or .arrow) atomically and return its counts and digest."""
        index, cut = plan
        asked, refused = self._requests(read_range(self._job.files, cut, self._job.sampling))
        rows = []
        for prompt, samples in self._completions(asked):
            rows += [_row(prompt, done, self._job.checkpoint) for done in samples if done.error is None]
            if failed := next((done for done in samples if done.error), None):
                refused.append(RejectedPrompt(prompt.file, prompt.line, _reason(prompt, failed)))
        path = f"rows/{index:08d}.{self._job.file_format}"
        data = encoded(rows, self._job.file_format)
        self._storage.write_atomically(self._storage.join(path), lambda file: file.write(data))
        return {
            "path": path,
            "num_rows": len(rows),
            "num_tokens": sum(len(row["token_ids"]) for row in rows),
            "num_bytes": len(data),
            "xxh3_128": xxh3_128_hex(data),
            "refused": [asdict(reject) for reject in refused],
            "samples": [{name: row[name] for name in ("id", "prompt", "text")} for row in rows[:_SAMPLES]],
        }

    def _requests(self, prompts: list[Prompt]) -> tuple[list[_Asked], list[RejectedPrompt]]:
        """Encode prompts; those with words the vocabulary lacks are set aside."""
        asked: list[_Asked] = []
        refused: list[RejectedPrompt] = []
        for prompt in prompts:
            try:
                ids = tuple(self._tokenizer.encode_prompt(prompt.text).tolist())
            except UserError as error:
                refused.append(RejectedPrompt(prompt.file, prompt.line, str(error)))
            else:
                asked.append((prompt, GenerationRequest(id=prompt.id, prompt_ids=ids, sampling=prompt.sampling)))
        return asked, refused

    def _completions(self, asked: list[_Asked]) -> Iterator[tuple[Prompt, list[Completion]]]:
        """Yield the samples of each prompt in order, with a bounded number of calls in flight."""
        calls = deque(asked[first : first + _PROMPTS_PER_CALL] for first in range(0, len(asked), _PROMPTS_PER_CALL))
        flying: deque[tuple[list[_Asked], Callable[[], list[list[Completion]]]]] = deque()
        while calls or flying:
            while calls and len(flying) < self._num_calls:
                chunk = calls.popleft()
                flying.append((chunk, self._calls.send([request for _, request in chunk])))
            chunk, wait = flying.popleft()
            yield from zip([prompt for prompt, _ in chunk], wait(), strict=True)


class _ReplicaCalls:
    """Sends requests to the replicas of an application on this cluster."""

    def __init__(self, application: str) -> None:
        from ray import serve

        self._handle = serve.get_app_handle(application)

    def send(self, requests: Sequence[GenerationRequest]) -> Callable[[], list[list[Completion]]]:
        """Send requests and return what waits for their samples."""
        return functools.partial(self._wait, requests, self._begin(requests))

    def _begin(self, requests: Sequence[GenerationRequest]) -> Any:
        # An id of its own for each call: a repeated call may meet the first one still running.
        sent = [replace(request, id=uuid.uuid4().hex, key=request.id) for request in requests]
        return self._handle.complete.remote(sent)

    def _wait(self, requests: Sequence[GenerationRequest], response: Any) -> list[list[Completion]]:
        """Wait for a call; one whose replica died or whose engine failed is sent again, after a pause."""
        from ray.exceptions import RayActorError, RayTaskError

        for pause in _PAUSES_SECONDS:
            try:
                return response.result()
            except (RayTaskError, RayActorError) as error:
                if not isinstance(error, RayActorError | RunFailedError):
                    raise
            time.sleep(pause)
            response = self._begin(requests)
        return response.result()


def _reason(prompt: Prompt, failed: Completion) -> str:
    """Return why a sample failed, in words that are the same in every run: a call's own id is not."""
    return (failed.error or "").replace(failed.request_id, prompt.id)


def _row(prompt: Prompt, done: Completion, checkpoint: str) -> dict[str, Any]:
    logprobs = done.logprobs
    has_alternatives = logprobs is not None and bool(prompt.sampling.logprobs)
    return {
        "id": prompt.id,
        "sample": done.sample,
        "prompt": prompt.text,
        "text": done.text,
        "token_ids": list(done.token_ids),
        "finish_reason": done.finish_reason,
        "seed": prompt.sampling.seed,
        "logprobs": None if logprobs is None else [entry.logprob for entry in logprobs],
        "top_logprobs": [_alternatives(entry.top) for entry in logprobs or ()] if has_alternatives else None,
        "checkpoint": checkpoint,
    }


def _alternatives(top: tuple[tuple[int, float], ...]) -> list[dict[str, Any]]:
    return [{"token_id": token, "logprob": logprob} for token, logprob in top]


def encoded(rows: list[dict[str, Any]], file_format: str) -> bytes:
    """Return the bytes of a file of rows, the same for the same rows."""
    if file_format == "jsonl":
        return b"".join(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    return sink.getvalue().to_pybytes()
