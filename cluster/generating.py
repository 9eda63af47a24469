"""`herd generate`: prompts and a checkpoint to a dataset of completions, through Ray Serve.

A planned-shard job: each plan is a range of prompts, its actor sends them to the deployment and
commits one file. A row depends on the checkpoint, the sampling settings and its own id, so the
dataset is the same for any number of replicas and actors, and after any crash.
"""

import functools
import json
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.record_book import Run
from cluster.serving import handles_only
from cluster.session import Cluster
from cluster.shard_job import ShardJob, run_shard_job
from gpt_core import checkpoint, sealed_json
from gpt_core.digests import sha256_hex, xxh3_128_hex
from gpt_core.errors import CorpusError, StaleOutputError
from gpt_core.generation import Completion, GenerationRequest, Sampling
from gpt_core.ledger import Row, first_difference
from gpt_core.prompts import Prompt, RejectedPrompt, read_prompts
from gpt_core.settings import GenerateSettings, SamplingSettings
from gpt_core.storage import Storage
from gpt_core.tokenizer import load_tokenizer

MANIFEST = "manifest.json"
_APPLICATION = "herd-generate"
_PROMPTS_PER_CALL = 8
_CALLS_IN_FLIGHT = 8
_CALL_TRIES = 5

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("logprobs", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a generation is about, resolved."""

    checkpoint: Path
    tokenizer: str
    prompts: list[Prompt]
    rejects: list[RejectedPrompt]
    decisive: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Generated:
    """What a finished dataset holds; `samples` are the first rows, for people."""

    num_rows: int
    num_tokens: int
    num_rejects: int
    root_digest: str
    samples: list[dict[str, Any]]


def resolve(settings: GenerateSettings) -> Inputs:
    """Find the checkpoint and read the prompts.

    Raises:
        CheckpointError: If there is no whole checkpoint.
        CorpusError: If a prompt file is missing, or no prompt can be used.
    """
    loaded = checkpoint.load(settings.checkpoint)
    prompts, rejects = read_prompts(settings.prompts, sampling_of(settings.sampling))
    if not prompts:
        raise CorpusError(
            ", ".join(settings.prompts),
            f"no prompt ({len(rejects)} rows set aside)",
            "a prompt a line",
            "add one",
        )
    decisive = {
        "checkpoint": checkpoint.weights_digest(loaded.path),
        "prompts": sha256_hex(repr(prompt).encode() for prompt in prompts),
        "prompts_per_shard": settings.prompts_per_shard,
        "format": settings.format,
        "sampling": settings.sampling.model_dump(mode="json"),
        "precision": settings.engine.precision,
    }
    return Inputs(loaded.path, loaded.tokenizer["name"], prompts, rejects, decisive)


def check_prompts(settings: GenerateSettings) -> None:
    """Raise CorpusError for prompt files that cannot be read, long before a checkpoint is there."""
    read_prompts(settings.prompts, sampling_of(settings.sampling))


def sampling_of(settings: SamplingSettings) -> Sampling:
    """Return the engine's form of sampling settings."""
    values = settings.model_dump()
    return Sampling(**{"n": values.pop("num_samples"), **values, "stop": tuple(settings.stop)})


def finished(settings: GenerateSettings, inputs: Inputs) -> Generated | None:
    """Return the dataset in the output folder if these settings made it, None if there is none.

    Raises:
        StaleOutputError: If the folder holds another dataset, naming the first setting that differs.
    """
    found = sealed_json.read(Path(settings.output) / MANIFEST)
    if found is None:
        return None
    if difference := first_difference(found["settings"], inputs.decisive):
        name, old, new = difference
        raise StaleOutputError(
            f"{settings.output}: {name}",
            f"a dataset made with {old!r}",
            f"{new!r}",
            "choose another output folder",
        )
    return Generated(**found["generated"])


def perform(settings: GenerateSettings, inputs: Inputs, cluster: Cluster, run: Run) -> Generated:
    """Complete every prompt, commit the dataset, record it in the run, and return what it holds."""
    size = settings.prompts_per_shard
    plans = [tuple(inputs.prompts[first : first + size]) for first in range(0, len(inputs.prompts), size)]
    job = ShardJob(
        title="generate",
        folder=settings.output,
        settings=inputs.decisive,
        plans=list(enumerate(plans)),
        make_worker=functools.partial(PromptCompleter, settings.output, settings.format, inputs.tokenizer),
        pool=settings.pool,
    )
    with handles_only(str(inputs.checkpoint), settings.engine, cluster, _APPLICATION):
        ledger = run_shard_job(job, cluster)
    generated = _commit(settings, inputs, sorted(ledger.rows(), key=lambda row: row["index"]))
    ledger.remove()
    _record(run, settings, inputs, generated)
    return generated


class PromptCompleter:
    """Completes a range of prompts through the deployment and commits their file; one an actor."""

    def __init__(self, folder: str, file_format: str, tokenizer: str) -> None:
        from ray import serve

        self._storage = Storage.of(folder)
        self._format = file_format
        self._tokenizer = load_tokenizer(tokenizer)
        self._handle = serve.get_app_handle(_APPLICATION)

    def __call__(self, plan: tuple[int, tuple[Prompt, ...]]) -> Row:
        """Write rows/NNNNNNNN.jsonl (or .arrow) atomically and return its counts and digest."""
        index, prompts = plan
        completions = list(self._completions(prompts))
        rows = [_row(prompt, done) for prompt, samples in completions for done in samples if done.error is None]
        refused = [(prompt.id, done.error) for prompt, samples in completions for done in samples if done.error]
        path = f"rows/{index:08d}.{self._format}"
        data = _encoded(rows, self._format)
        self._storage.write_atomically(self._storage.join(path), lambda file: file.write(data))
        return {
            "path": path,
            "num_rows": len(rows),
            "num_tokens": sum(len(row["token_ids"]) for row in rows),
            "num_bytes": len(data),
            "xxh3_128": xxh3_128_hex(data),
            "refused": refused,
            "samples": rows[:3],
        }

    def _completions(self, prompts: tuple[Prompt, ...]) -> Iterator[tuple[Prompt, list[Completion]]]:
        """Yield the samples of each prompt in order, with a bounded number of calls in flight."""
        calls = deque(prompts[first : first + _PROMPTS_PER_CALL] for first in range(0, len(prompts), _PROMPTS_PER_CALL))
        flying: deque[tuple[tuple[Prompt, ...], Any]] = deque()
        while calls or flying:
            while calls and len(flying) < _CALLS_IN_FLIGHT:
                chunk = calls.popleft()
                flying.append((chunk, self._send(chunk)))
            chunk, response = flying.popleft()
            yield from zip(chunk, self._answer(chunk, response), strict=True)

    def _send(self, chunk: tuple[Prompt, ...]) -> Any:
        return self._handle.complete.remote([self._request(prompt) for prompt in chunk])

    def _answer(self, chunk: tuple[Prompt, ...], response: Any) -> list[list[Completion]]:
        """Wait for a call; one whose replica died is sent again and gives the same text."""
        from ray.exceptions import RayActorError, RayTaskError

        for _ in range(_CALL_TRIES - 1):
            try:
                return response.result()
            except RayTaskError:
                raise
            except RayActorError:
                response = self._send(chunk)
        return response.result()

    def _request(self, prompt: Prompt) -> GenerationRequest:
        ids = tuple(self._tokenizer.encode(prompt.text).tolist())
        # An id of its own for each call: a repeated call may meet the first one still running.
        return GenerationRequest(id=uuid.uuid4().hex, prompt_ids=ids, sampling=prompt.sampling, key=prompt.id)


def _row(prompt: Prompt, done: Completion) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "sample": done.sample,
        "prompt": prompt.text,
        "text": done.text,
        "token_ids": list(done.token_ids),
        "finish_reason": done.finish_reason,
        "seed": prompt.sampling.seed,
        "logprobs": None if done.logprobs is None else [entry.logprob for entry in done.logprobs],
    }


def _encoded(rows: list[dict[str, Any]], file_format: str) -> bytes:
    if file_format == "jsonl":
        return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
    return sink.getvalue().to_pybytes()


def _commit(settings: GenerateSettings, inputs: Inputs, rows: list[Row]) -> Generated:
    """Write the rejects, then the manifest; where it stands the dataset is complete."""
    rejects = [
        *map(asdict, inputs.rejects),
        *({"id": name, "reason": why} for row in rows for name, why in row["refused"]),
    ]
    _write_rejects(Storage.of(settings.output), rejects)
    columns = ("path", "num_rows", "num_tokens", "num_bytes", "xxh3_128")
    shards = [{name: row[name] for name in columns} for row in rows]
    generated = Generated(
        num_rows=sum(shard["num_rows"] for shard in shards),
        num_tokens=sum(shard["num_tokens"] for shard in shards),
        num_rejects=len(rejects),
        root_digest=sha256_hex(f"{shard['path']} {shard['xxh3_128']}\n".encode() for shard in shards),
        samples=[sample for row in rows for sample in row["samples"]][:3],
    )
    content = {"settings": inputs.decisive, "generated": asdict(generated), "shards": shards}
    sealed_json.write(Path(settings.output) / MANIFEST, content)
    return generated


def _write_rejects(storage: Storage, rejects: Iterable[dict[str, Any]]) -> None:
    lines = b"".join(json.dumps(reject, ensure_ascii=False).encode() + b"\n" for reject in rejects)
    if lines:
        storage.write_atomically(storage.join("rejects.jsonl"), lambda file: file.write(lines))


def _record(run: Run, settings: GenerateSettings, inputs: Inputs, generated: Generated) -> None:
    metrics = {"rows": generated.num_rows, "tokens": generated.num_tokens, "rejects": generated.num_rejects}
    run.log_metrics(metrics, step=0)
    run.log_table([{"prompt": row["prompt"], "text": row["text"]} for row in generated.samples], "samples.json")
    run.set_tags({"herd.checkpoint": inputs.decisive["checkpoint"], "herd.generated": generated.root_digest})
    run.log_artifact(Path(settings.output) / MANIFEST)
