"""mlflow as we import it, and the SQLite file it needs whole."""

import fcntl
import importlib
import logging
import os
import warnings
from pathlib import Path

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


def import_mlflow(module: str = "mlflow.tracking") -> None:
    """Import a module of mlflow, silent, without telemetry and without retries of its own."""
    for name, value in _MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(module)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def database_path(uri: str) -> Path:
    """Return the file of a sqlite:/// address."""
    return Path(uri.removeprefix("sqlite:///").split("?")[0]).absolute()


def make_database(uri: str) -> None:
    """Create the SQLite file with MLflow's tables, if there is none.

    Two processes that migrate the same fresh file break it for good. So it is made aside, under a
    lock, and renamed into place: whoever opens it finds all tables.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = database_path(uri)
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
