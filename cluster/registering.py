"""Models handed on by name: what `herd pretrain --register NAME` stores, and `models:/NAME@ALIAS` as a checkpoint."""

import os
import shlex
import shutil
from pathlib import Path
from typing import TypeVar

from cluster.progress import say
from cluster.recording.record_book import Run
from cluster.tracking import TrackingOptions, download_registered_model, tracking_uri, write_prompt_model
from gpt_core import sealed_json
from gpt_core.credentials import without_credentials
from gpt_core.settings import EvaluateJob, FinetuneJob, GenerateJob, InspectSettings, ServeJob, TrackingSettings
from gpt_core.storage import Location, local_folder
from gpt_core.training import checkpoint

SCHEME = "models:/"
NEWEST = "newest"
FOLDER = "registered"
REGISTERED_AS = "registered.json"
MODELS = "models"
_RUNS = "runs"
J = TypeVar("J", EvaluateJob, FinetuneJob, GenerateJob, InspectSettings, ServeJob)


def register(title: str, run: Run, register_as: str, path: Location, output: Path) -> None:
    """Write a checkpoint as a model MLflow can load, into OUTPUT/registered/NAME, and record that it is registered.

    A folder for each: the store may take it only when a later checkpoint is registered as well.

    Raises:
        CheckpointError: The Hugging Face layout cannot hold the model.
    """
    from gpt_core.exchange.registered_model import package

    if is_registered(register_as, path.name, output):
        return
    name, alias = _name_and_alias(register_as)
    folder = output / FOLDER / path.name
    aside = output / f"{FOLDER}.aside"
    shutil.rmtree(aside, ignore_errors=True)
    write_prompt_model(package(checkpoint.load(path), aside / "model"), folder)
    shutil.rmtree(aside, ignore_errors=True)
    run.register_model(folder, name, alias, checkpoint=path.name)
    # After the record: a kill in between registers once more, which the store takes for the same version.
    noted = [*_noted(output), [path.name, name, alias]]
    sealed_json.write(output / REGISTERED_AS, {"registered": noted})
    say(f"{title}: registering {path.name} as models:/{name}@{alias}")


def is_registered(register_as: str, checkpoint_name: str, output: Path) -> bool:
    """Return whether a checkpoint of the output folder has been recorded as registered under this name and alias."""
    return [checkpoint_name, *_name_and_alias(register_as)] in _noted(output)


def serving_line(register_as: str | None, tracking: TrackingSettings, output: str) -> str:
    """Return the line of a job's summary that serves what it registered, where `herd serve` here would not find it."""
    beside = local_folder(output).absolute().parent
    is_default = tracking.uri is None and (os.environ.get("MLFLOW_TRACKING_URI") or beside == Path(_RUNS).absolute())
    if is_default or not (register_as and tracking.enabled):
        return ""
    name, alias = _name_and_alias(register_as)
    store = shlex.quote(without_credentials(tracking_uri(TrackingOptions(tracking.uri), beside)))
    return f"\nserve it: MLFLOW_TRACKING_URI={store} herd serve --checkpoint {SCHEME}{name}@{alias}"


def _name_and_alias(register_as: str) -> tuple[str, str]:
    name, _, alias = register_as.partition("@")
    return name, alias or NEWEST


def _noted(output: Path) -> list[list[str]]:
    """Return checkpoint, name and alias of each registration that was recorded."""
    noted = sealed_json.read(output / REGISTERED_AS)
    return noted["registered"] if noted else []


def with_local_checkpoint(job: J) -> J:
    """Return the settings with a folder as checkpoint: a registered model is fetched once, beside the output.

    `herd serve` and `herd inspect`, which have no output folder, take the folder runs here.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
    """
    if not job.checkpoint.startswith(SCHEME):
        return job
    from gpt_core.exchange.registered_model import unpack

    if isinstance(job, ServeJob | InspectSettings):
        beside, tracking = Path(_RUNS).absolute(), TrackingSettings()
    else:
        beside, tracking = local_folder(job.output).absolute().parent, job.tracking
    uri = tracking_uri(TrackingOptions(tracking.uri), beside)
    packaged = download_registered_model(job.checkpoint, uri, beside / MODELS)
    run_folder = packaged.parents[1] / "run"
    if checkpoint.load_newest(run_folder) is None:
        unpack(packaged, run_folder)
    say(f"{job.checkpoint} is {run_folder}")
    return job.model_copy(update={"checkpoint": str(run_folder)})
