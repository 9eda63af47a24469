"""Models handed on by name: what `herd pretrain --register NAME` stores, and `models:/NAME@ALIAS` as a checkpoint."""

import shutil
from pathlib import Path
from typing import TypeVar

from cluster.progress import say
from cluster.recording.record_book import Run
from cluster.stages import local_folder
from cluster.tracking import TrackingOptions, download_registered_model, tracking_uri, write_prompt_model
from gpt_core.settings import EvaluateJob, FinetuneJob, GenerateJob, InspectSettings, ServeJob, TrackingSettings
from gpt_core.training import checkpoint

SCHEME = "models:/"
NEWEST = "newest"
FOLDER = "registered"
MODELS = "models"
J = TypeVar("J", EvaluateJob, FinetuneJob, GenerateJob, InspectSettings, ServeJob)


def register(run: Run, register_as: str, path: Path, output: Path) -> None:
    """Write a checkpoint as a model MLflow can load, into OUTPUT/registered, and record that it is registered.

    Raises:
        CheckpointError: The Hugging Face layout cannot hold the model.
    """
    from gpt_core.exchange.registered_model import package

    name, _, alias = register_as.partition("@")
    folder = output / FOLDER
    aside = folder.with_name(f"{FOLDER}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    write_prompt_model(package(checkpoint.load(path), aside / "model"), folder)
    shutil.rmtree(aside, ignore_errors=True)
    run.register_model(folder, name, alias or NEWEST, checkpoint=path.name)
    say(f"pretrain: registering {path.name} as models:/{name}@{alias or NEWEST}")


def is_registered(output: str) -> bool:
    """Return whether a run's last checkpoint has been recorded as registered."""
    return (Path(output) / FOLDER / "MLmodel").exists()


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
        beside, tracking = Path("runs").absolute(), TrackingSettings()
    else:
        beside, tracking = local_folder(job.output).absolute().parent, job.tracking
    uri = tracking_uri(TrackingOptions(tracking.uri), beside)
    packaged = download_registered_model(job.checkpoint, uri, beside / MODELS)
    run_folder = packaged.parents[1] / "run"
    if checkpoint.load_newest(run_folder) is None:
        unpack(packaged, run_folder)
    say(f"{job.checkpoint} is {run_folder}")
    return job.model_copy(update={"checkpoint": str(run_folder)})
