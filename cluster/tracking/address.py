"""Where a job's records go: its options, and MLflow's address."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.recording.system_metrics import SAMPLE_SECONDS
from gpt_core.credentials import without_credentials
from gpt_core.errors import SettingsError
from gpt_core.settings import TrackingSettings
from gpt_core.storage import local_folder


@dataclass(frozen=True, slots=True)
class TrackingOptions:
    """Where records go.

    Attributes:
        uri: MLflow's address; None takes MLFLOW_TRACKING_URI, else a SQLite file beside the output folder.
        experiment: Name of the experiment.
        enabled: False keeps the journal and sends nothing; a rerun with True sends it.
        system_seconds: Time between two samples of the machine's load; None for none.
        closing_seconds: Longest wait for the store at the end of the job.
    """

    uri: str | None = None
    experiment: str = "gpt-herd"
    enabled: bool = True
    system_seconds: float | None = SAMPLE_SECONDS
    closing_seconds: float = 20.0


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
    uri = tracking_uri(TrackingOptions(settings.uri), local_folder(output).absolute().parent)
    if uri.startswith("sqlite:"):
        return f"{_mlflow_command()} ui --backend-store-uri {shlex.quote(uri)}"
    return without_credentials(uri)


def page_line(settings: TrackingSettings, output: str) -> str:
    """Return the last line of such a job's summary: how to look at its runs; empty where no store gets them."""
    return f"\nfollow the runs: {page_command(settings, output)}" if settings.enabled else ""


def _mlflow_command() -> str:
    """Return how a shell here finds this environment's mlflow: by its name, or else by its path."""
    own = Path(sys.executable).with_name("mlflow")
    return "mlflow" if shutil.which("mlflow") == str(own) or not own.exists() else shlex.quote(str(own))
