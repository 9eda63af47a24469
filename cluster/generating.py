"""`herd generate`: prompts and a checkpoint to a dataset of completions, through Ray Serve.

A planned-shard job: each plan is a range of prompts, its actor (``cluster.prompt_completer``) sends
them to the deployment and commits one file. A row depends on the checkpoint, the sampling settings
and its own id, so the dataset is the same for any number of replicas and actors, and after any crash.
"""

import contextlib
import functools
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.performances import PICTURE, write_performances
from cluster.prompt_completer import Completing, PromptCompleter
from cluster.recording.record_book import Run
from cluster.serving.deployment import handles_only, with_settled_precision
from cluster.serving.http_guard import API_KEY
from cluster.serving.service_client import Service
from cluster.session import Cluster
from cluster.shard_job import ShardJob, run_shard_job
from cluster.stages import log_output, made_already, write_rejects
from gpt_core import sealed_json
from gpt_core.counted import counted
from gpt_core.digests import sha256_hex
from gpt_core.errors import CorpusError
from gpt_core.generation.prompts import PromptScan, scan_prompts
from gpt_core.generation.request import Sampling
from gpt_core.ledger import Row
from gpt_core.settings import GenerateSettings, PoolSettings, SamplingSettings
from gpt_core.sole_writer import sole_writer
from gpt_core.storage import Location, Storage, is_url, local_folder
from gpt_core.tokens.midi import require_symusic
from gpt_core.tokens.music_tokenizer import MusicTokenizer
from gpt_core.training import checkpoint

MANIFEST = "manifest.json"
MUSIC = MusicTokenizer.name
_LOCK = ".job"
_LOCK_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a generation is about, resolved."""

    checkpoint: Location
    tokenizer: str
    scan: PromptScan
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
        UserError: If the service at the address serves another checkpoint, or does not answer.
        ResourceError: If the checkpoint makes music and symusic is not installed.
    """
    loaded = checkpoint.load(settings.checkpoint)
    if loaded.tokenizer["name"] == MUSIC:
        require_symusic()
    scan = scan_of(settings)
    decisive = {
        "checkpoint": checkpoint.weights_digest(loaded.path),
        "prompts": scan.digest,
        "prompts_per_shard": settings.prompts_per_shard,
        "format": settings.format,
        "sampling": settings.sampling.model_dump(mode="json"),
        "precision": settings.engine.precision,
    }
    output = Storage.of(settings.output)
    if (service := service_of(settings)) and not output.exists(output.join(MANIFEST)):
        service.require(decisive["checkpoint"], settings.engine.precision)
    return Inputs(loaded.path, loaded.tokenizer["name"], scan, decisive)


def service_of(settings: GenerateSettings) -> Service | None:
    """Return the running service the settings name, with the key from the environment."""
    return Service(settings.address, os.environ.get(API_KEY)) if settings.address else None


def _told(scan: PromptScan) -> str:
    first = scan.rejects[0] if scan.rejects else None
    told = f"{counted(len(scan.rejects), 'row')} set aside"
    return f"{told}, the first at {first.file}:{first.line}: {first.reason}" if first else told


def scan_of(settings: GenerateSettings) -> PromptScan:
    """Return what the prompt files hold; needs no checkpoint.

    Raises:
        CorpusError: If a prompt file is missing, or no prompt can be used.
    """
    scan = scan_prompts(settings.prompts, sampling_of(settings.sampling), settings.prompts_per_shard)
    if not scan.num_prompts:
        raise CorpusError(
            ", ".join(settings.prompts),
            f"no prompt ({_told(scan)})",
            "a prompt a line or row",
            "add one",
        )
    return scan


def sampling_of(settings: SamplingSettings) -> Sampling:
    """Return the engine's form of sampling settings."""
    values = settings.model_dump()
    return Sampling(**{"n": values.pop("num_samples"), **values, "stop": tuple(settings.stop)})


def finished(settings: GenerateSettings, inputs: Inputs) -> Generated | None:
    """Return the dataset in the output folder if these settings made it, None if there is none.

    Raises:
        StaleOutputError: If the folder holds another dataset, naming the first setting that differs.
    """
    found = made_already(settings.output, MANIFEST, inputs.decisive, "a dataset made with", inputs.checkpoint)
    if found is None:
        return None
    return Generated(**found["generated"])


def perform(settings: GenerateSettings, inputs: Inputs, cluster: Cluster, run: Run) -> Generated:
    """Complete every prompt, commit the dataset, record it in the run, and return what it holds."""
    with sole_writer(local_folder(settings.output), _LOCK, _LOCK_PATIENCE_SECONDS):
        return _perform(settings, inputs, cluster, run)


def _perform(settings: GenerateSettings, inputs: Inputs, cluster: Cluster, run: Run) -> Generated:
    if service := service_of(settings):
        engine, precision = settings.engine, service.require(inputs.decisive["checkpoint"], settings.engine.precision)
    else:
        engine = with_settled_precision(settings.engine, cluster)
        precision = engine.precision
    # A name of its own: a shared cluster may run several jobs, and a rerun takes over what a killed one left there.
    application = f"herd-generate-{sha256_hex([settings.output.encode()])[:12]}"
    completing = Completing(
        folder=settings.output,
        file_format=settings.format,
        application=application,
        service=service,
        tokenizer=inputs.tokenizer,
        checkpoint=inputs.decisive["checkpoint"],
        files=inputs.scan.files,
        sampling=sampling_of(settings.sampling),
        prompts_in_flight=engine.num_slots * (engine.max_replicas or engine.num_replicas),
    )
    job = ShardJob(
        title="generate",
        folder=settings.output,
        settings={**inputs.decisive, "precision": precision},
        plans=list(enumerate(inputs.scan.ranges)),
        make_worker=functools.partial(PromptCompleter, completing),
        pool=pool_of(settings),
    )
    own = handles_only(str(inputs.checkpoint), engine, cluster, application)
    with contextlib.nullcontext() if service else own:
        ledger = run_shard_job(job, cluster)
    rows = sorted(ledger.rows(), key=lambda row: row["index"])
    generated = _commit(settings, inputs, precision, rows)
    ledger.remove()
    record(run, settings, inputs, generated)
    return generated


def pool_of(settings: GenerateSettings) -> PoolSettings:
    """Return the pool with two actors a replica, unless it says how many: where one's shard ends another's goes on."""
    pool, engine = settings.pool, settings.engine
    if pool.max_actors is not None:
        return pool
    enough = max(2 * (engine.max_replicas or engine.num_replicas), pool.min_actors)
    return pool.model_copy(update={"max_actors": enough})


def _commit(settings: GenerateSettings, inputs: Inputs, precision: str, rows: list[Row]) -> Generated:
    """Write the rejects, music as MIDI files, then the manifest; where it stands the dataset is complete."""
    rejects = [*map(asdict, inputs.scan.rejects), *(reject for row in rows for reject in row["refused"])]
    rejects.sort(key=lambda reject: (reject["file"], reject["line"]))
    write_rejects(settings.output, rejects)
    if not is_url(settings.output):
        for abandoned in Path(settings.output).glob("rows/.*.tmp"):  # by workers that were killed
            abandoned.unlink(missing_ok=True)
    columns = ("path", "num_rows", "num_tokens", "num_bytes", "xxh3_128")
    shards = [{name: row[name] for name in columns} for row in rows]
    generated = Generated(
        num_rows=sum(shard["num_rows"] for shard in shards),
        num_tokens=sum(shard["num_tokens"] for shard in shards),
        num_rejects=len(rejects),
        root_digest=sha256_hex(f"{shard['path']} {shard['xxh3_128']}\n".encode() for shard in shards),
        samples=[sample for row in rows for sample in row["samples"]][:3],
    )
    if inputs.tokenizer == MUSIC:
        write_performances(settings.output, [shard["path"] for shard in shards])
    # The settings as they were asked for, and what "auto" came to be.
    content = {"settings": inputs.decisive, "precision": precision, "generated": asdict(generated), "shards": shards}
    sealed_json.write(Storage.of(settings.output).join(MANIFEST), content)
    return generated


def record(run: Run, settings: GenerateSettings, inputs: Inputs, generated: Generated) -> None:
    """Record what the dataset in the output folder holds."""
    metrics = {"rows": generated.num_rows, "tokens": generated.num_tokens, "rejects": generated.num_rejects}
    run.log_metrics(metrics, step=0)
    run.log_table([{"prompt": row["prompt"], "text": row["text"]} for row in generated.samples], "samples.json")
    run.log_model_input(inputs.decisive["checkpoint"])
    profile = {"num_rows": generated.num_rows, "num_tokens": generated.num_tokens}
    run.log_dataset("generated", generated.root_digest, settings.output, context="output", profile=profile)
    run.set_tags({"herd.generated": generated.root_digest})
    log_output(run, settings.output, MANIFEST)
    if inputs.tokenizer == MUSIC and generated.num_rows:
        log_output(run, settings.output, PICTURE)
