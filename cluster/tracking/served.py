"""A link from the training run of a checkpoint to the page it is served at, for as long as it is."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cluster.progress import say
from cluster.recording.patience import first_line
from cluster.tracking.library import import_mlflow
from gpt_core.storage import Location, Url

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "herd.page"
_NOTE = "mlflow.note.content"
"""The run's description, which MLflow's page shows as text with links."""
_CLOSING_SECONDS = 5.0
_FOLDERS_ABOVE = 5


@contextlib.contextmanager
def linked_to_page(checkpoint: Location, digest: str, address: str) -> Iterator[None]:
    """While the body runs, let the run that made a checkpoint link to the page: by a tag, and a note if it has none.

    Done beside the work, and given up where MLflow does not answer: serving waits for nothing here.

    Args:
        checkpoint: Its folder; without MLFLOW_TRACKING_URI the mlflow.db of a folder above is taken, if there is one.
        digest: SHA-256 of its weights, by which MLflow knows it.
        address: The page.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _database_above(checkpoint)
    if uri is None:
        yield
        return
    _complaining(import_mlflow)  # here: in a thread it could meet the service's own imports, half done
    linking = _started(lambda: _change_runs(uri, digest, lambda client, run: _link(client, run, address)))

    def unlink() -> None:
        linking.join()
        _change_runs(uri, digest, lambda client, run: _unlink(client, run, address))

    try:
        yield
    finally:
        _started(unlink).join(_CLOSING_SECONDS)


def _database_above(checkpoint: Location) -> str | None:
    if isinstance(checkpoint, Url):
        return None
    for folder in checkpoint.absolute().parents[:_FOLDERS_ABOVE]:
        if (folder / "mlflow.db").is_file():
            return f"sqlite:///{folder / 'mlflow.db'}"
    return None


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=_complaining, args=(work,), name="page-link", daemon=True)
    thread.start()
    return thread


def _complaining(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:  # a link is no reason to end a service
        say(f"tracking: the run of the checkpoint cannot link to its page: {first_line(error)}")


def _change_runs(uri: str, digest: str, change: Callable[["MlflowClient", str], None]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_logged_models(experiments, f"tags.`herd.checkpoint` = '{digest}'")
    for run in {model.source_run_id for model in found if model.source_run_id}:
        change(client, run)


def _link(client: "MlflowClient", run: str, address: str) -> None:
    client.set_tag(run, TAG, address)
    if not client.get_run(run).data.tags.get(_NOTE):
        client.set_tag(run, _NOTE, _note(address))


def _unlink(client: "MlflowClient", run: str, address: str) -> None:
    """Take back what was linked, and nothing that has been written since."""
    tags = client.get_run(run).data.tags
    for tag, ours in ((TAG, address), (_NOTE, _note(address))):
        if tags.get(tag) == ours:
            client.delete_tag(run, tag)


def _note(address: str) -> str:
    return f"Served now: [watch it think]({address})"
