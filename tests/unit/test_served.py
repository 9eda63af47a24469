"""Promises of cluster.tracking.served: the run of a checkpoint links to its page while it is served."""

import shutil
import socket
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster.serving import service
from cluster.tracking import TrackingOptions, open_run, served
from cluster.tracking.served import TAG, linked_to_page
from gpt_core.settings import ServeSettings
from gpt_core.training import checkpoint
from tests.tiny_checkpoint import write_tiny_checkpoint

PAGE = "http://127.0.0.1:8000/"
NOTE = "mlflow.note.content"


@pytest.fixture
def trained(tmp_path, empty_database, monkeypatch):
    """The folder of a checkpoint, and its run's tags by MLflow's own client."""
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    with open_run(TrackingOptions(system_seconds=None), name="t", kind="pretrain", output=tmp_path / "run") as run:
        run.log_model("step-00000020", step=20, metrics={}, tags={"herd.checkpoint": "abc"})
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs(["1"])
    return tmp_path / "run/checkpoints/step-00000020", client, found.info.run_id


def tags_when(client, run, is_there):
    deadline = time.monotonic() + 20
    while True:
        tags = client.get_run(run).data.tags
        if is_there(tags) or time.monotonic() > deadline:
            return tags
        time.sleep(0.05)


def test_the_run_links_to_the_page_while_it_is_served(trained):
    path, client, run = trained
    with linked_to_page(path, "abc", PAGE):
        tags = tags_when(client, run, lambda tags: NOTE in tags)
        assert tags[TAG] == PAGE
        assert f"({PAGE})" in tags[NOTE]
    assert not {TAG, NOTE} & set(client.get_run(run).data.tags)


def test_mlflow_is_imported_by_the_thread_that_serves(trained, monkeypatch):
    path, *_ = trained
    importers = []
    monkeypatch.setattr(served, "import_mlflow", lambda: importers.append(threading.current_thread()))
    with linked_to_page(path, "abc", PAGE):
        assert importers == [threading.current_thread()]
    assert importers == [threading.current_thread()]


def test_what_people_wrote_stays(trained):
    path, client, run = trained
    client.set_tag(run, NOTE, "my best run")
    with linked_to_page(path, "abc", PAGE):
        tags_when(client, run, lambda tags: TAG in tags)
        client.set_tag(run, TAG, "http://elsewhere/")
    tags = client.get_run(run).data.tags
    assert (tags[NOTE], tags[TAG]) == ("my best run", "http://elsewhere/")


def test_a_checkpoint_mlflow_does_not_know_is_served_all_the_same(trained, tmp_path_factory):
    path, client, run = trained
    with linked_to_page(path, "another", PAGE):
        pass
    with linked_to_page(tmp_path_factory.mktemp("alone"), "abc", PAGE):
        pass
    assert TAG not in client.get_run(run).data.tags


def test_a_server_that_is_down_is_named_and_holds_nothing_up(trained, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    path, _, _ = trained
    begun = time.monotonic()
    with linked_to_page(path, "abc", PAGE):
        assert time.monotonic() - begun < 0.5
    out = capsys.readouterr()
    assert "cannot link to its page" in out.out + out.err


def test_herd_serve_links_to_the_address_people_open(tmp_path, monkeypatch):
    links = []
    monkeypatch.setattr("cluster.tracking.served.linked_to_page", lambda *link: links.append(link) or nullcontext())
    run = write_tiny_checkpoint(tmp_path)
    for settings in (
        ServeSettings(checkpoint=str(run), port=8123),
        ServeSettings(checkpoint=str(run), port=8123, host="0.0.0.0"),
        ServeSettings(checkpoint=str(run), page=False),
    ):
        with service._linked(settings, service.resolve(settings), socket.gethostname()):
            pass
    for host in ("127.0.0.1", "0.0.0.0"):  # of a cluster's head: there nobody here reaches the first
        elsewhere = ServeSettings(checkpoint=str(run), port=8123, host=host)
        with service._linked(elsewhere, service.resolve(elsewhere), "head"):
            pass
    path = checkpoint.list_paths(run)[0]
    assert [(Path(place), digest) for place, digest, _ in links] == [(path, checkpoint.weights_digest(path))] * 3
    here = ["http://127.0.0.1:8123/", f"http://{socket.gethostname()}:8123/"]
    assert [address for *_, address in links] == [*here, "http://head:8123/"]


def test_a_server_that_hangs_holds_the_end_up_for_seconds_once(trained, monkeypatch):
    path, _, _ = trained
    monkeypatch.setattr("cluster.tracking.served._CLOSING_SECONDS", 0.5)
    monkeypatch.setattr("cluster.tracking.served._change_runs", lambda *_: time.sleep(5))
    with linked_to_page(path, "abc", PAGE):
        begun = time.monotonic()
    assert time.monotonic() - begun < 0.9
