"""MLflow as the store that a replay sends to."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.progress import say
from cluster.recording.journal import Point, Record
from cluster.recording.patience import first_line
from cluster.tracking.address import TrackingOptions, tracking_uri
from cluster.tracking.library import database_path, import_mlflow, make_database
from gpt_core.credentials import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_MAX_DIGEST_CHARACTERS = 36
_PARAMS_PER_BATCH = 100
_VERSIONS = "mlflow.modelVersions"
_REFUSALS = frozenset({
    "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "INVALID_PARAMETER_VALUE", "INVALID_STATE",
    "NOT_IMPLEMENTED", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST",
})  # fmt: skip

# How databases put that a row was there already. MLflow looks for rows it has before it writes, and
# fails with BAD_REQUEST where the same request, given up before, is being written at that moment.
_TWICE_AT_ONCE = re.compile(r"unique constraint|duplicate", re.IGNORECASE)


class MlflowStore:
    """MLflow behind the calls of :class:`cluster.recording.patience.Store`; used by one thread after prepare()."""

    def __init__(self, options: TrackingOptions, parent_folder: Path) -> None:
        self._uri = tracking_uri(options, parent_folder)
        self._experiment = options.experiment
        self._experiment_id = ""
        self.name = f"MLflow at {without_credentials(self._uri)}, experiment {options.experiment}"

    def prepare(self) -> None:
        """Import mlflow, and make the SQLite file if there is none, before any other process opens it.

        Imports belong here: in the replay's thread they could meet the job's own, half done.
        """
        import_mlflow()
        if self._uri.startswith("sqlite:"):
            try:
                make_database(self._uri)
            except Exception as error:  # tracking must not end the job; connect() tries again
                say(f"tracking: {self.name} cannot be set up: {first_line(error)}")

    def _client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        return MlflowClient(self._uri)

    def connect(self) -> None:
        """Find the experiment, or make it."""
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
        return (database_path(self._uri).parent / "mlartifacts" / self._experiment).as_uri()

    def is_refusal(self, error: Exception) -> bool:
        """Return whether the same call would fail for ever."""
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException):
            return error.error_code in _REFUSALS and not _TWICE_AT_ONCE.search(str(error))
        return isinstance(error, (FileNotFoundError, IsADirectoryError, ImportError))

    def is_active(self, run_id: str) -> bool:
        """Return whether the run is there and not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client().get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def find_runs(self, key: str) -> list[str]:
        """Return the ids of the runs that carry the key, oldest first."""
        found = self._client().search_runs([self._experiment_id], f"tags.`herd.key` = '{key}'")
        return [run.info.run_id for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))]

    def create_run(self, key: str, opened: Record, parent_id: str | None) -> str:
        """Create a run that carries the key and return its id."""
        tags = {"herd.key": key, "herd.kind": opened["kind"], "mlflow.user": opened["user"]}
        tags |= {"mlflow.source.name": f"herd {opened['kind']}", "mlflow.source.type": "JOB"}
        if parent_id is not None:
            tags["mlflow.parentRunId"] = parent_id
        run = self._client().create_run(self._experiment_id, opened["time"], tags, opened["name"])
        return run.info.run_id

    def delete_run(self, run_id: str) -> None:
        """Delete a run."""
        self._client().delete_run(run_id)

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        """Set RUNNING, or a final status with its time in milliseconds."""
        if end_time is None:
            self._client().update_run(run_id, status)
        else:
            self._client().set_terminated(run_id, status, end_time)

    def recorded_steps(self, run_id: str, metric: str) -> set[int]:
        """Return the steps MLflow holds of a metric."""
        return {point.step for point in self._client().get_metric_history(run_id, metric)}

    def log_points(self, run_id: str, points: list[Point]) -> None:
        """Store up to 1,000 points in one request; a point that is there already stays one row."""
        from mlflow.entities import Metric

        metrics = [Metric(point.metric, point.value, point.time, point.step) for point in points]
        self._client().log_batch(run_id, metrics=metrics, synchronous=True)

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        """Store params; the same again changes nothing."""
        from mlflow.entities import Param

        entities = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(entities), _PARAMS_PER_BATCH):
            self._client().log_batch(run_id, params=entities[start : start + _PARAMS_PER_BATCH], synchronous=True)

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Store tags, replacing earlier values."""
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        for start in range(0, len(entities), _PARAMS_PER_BATCH):
            self._client().log_batch(run_id, tags=entities[start : start + _PARAMS_PER_BATCH], synchronous=True)

    def delete_tag(self, run_id: str, tag: str) -> None:
        """Delete one tag."""
        self._client().delete_tag(run_id, tag)

    def log_dataset(self, run_id: str, dataset: Record) -> None:
        """Store a dataset as input of the run."""
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
        """Store a file, replacing an earlier one of the name."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} is gone")
        self._client().log_artifact(run_id, str(path), folder)

    def log_model(self, run_id: str, key: str, model: Record) -> None:
        """Create the model unless an earlier try has, and give it the metrics it does not have.

        A later record of the same checkpoint has another time, and would make a second row of its metrics' step.
        """
        from mlflow.entities import LoggedModelOutput, Metric

        client = self._client()
        found = client.search_logged_models([self._experiment_id], f"tags.`herd.key` = '{key}'")
        model_id = found[0].model_id if found else self._create_model(run_id, key, model)
        client.finalize_logged_model(model_id, "READY")
        outputs = client.get_run(run_id).outputs if found else None
        if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, model["step"])])
        known = {metric.key for one in found for metric in one.metrics or ()}
        metrics = [
            Metric(name, value, model["time"], model["step"], model_id=model_id, run_id=run_id)
            for name, value in model["metrics"].items()
            if name not in known
        ]
        client.log_batch(run_id, metrics=metrics, synchronous=True)

    def log_model_input(self, run_id: str, digest: str) -> None:
        """Store the checkpoint with this digest as input of the run, where MLflow knows it."""
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
        linked = [*json.loads(model.tags.get(_VERSIONS, "[]")), {"name": name, "version": made.version}]
        client.set_logged_model_tags(model.model_id, {_VERSIONS: json.dumps(linked)})
        return made

    def _create_model(self, run_id: str, key: str, model: Record) -> str:
        tags = {**model["tags"], "herd.key": key, "herd.step": str(model["step"])}
        made = self._client().create_logged_model(
            self._experiment_id, model["name"], run_id, tags, model_type="checkpoint"
        )
        return made.model_id
