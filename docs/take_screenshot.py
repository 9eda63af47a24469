"""Take the picture of docs/tracking.md: ``python -m docs.take_screenshot DATABASE [FILE]``.

Starts an MLflow server on 127.0.0.1 over a copy of the database, so that nothing of it changes, opens the page of the
newest training run in headless Chromium, and stops both.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PICTURE = Path(__file__).with_name("images") / "mlflow.png"
_WINDOW = "1400,1000"
_PATIENCE_SECONDS = 180.0
_VIRTUAL_MILLISECONDS = 60_000
_CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def take(database: Path, picture: Path) -> None:
    """Write the picture of the newest training run in the database."""
    with tempfile.TemporaryDirectory(prefix="herd-picture-", ignore_cleanup_errors=True) as place:
        copy = Path(place) / "mlflow.db"
        shutil.copyfile(database, copy)
        uri = f"sqlite:///{copy}"
        port = _free_port()
        server = _start_server(uri, port, Path(place))
        try:
            _wait_for(f"http://127.0.0.1:{port}/health")
            experiment, run = _newest_training_run(uri)
            page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs/{run}/model-metrics"
            picture.parent.mkdir(exist_ok=True)
            photograph(page, picture, Path(place) / "profile")
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _start_server(uri: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--backend-store-uri", uri],
            env=os.environ | quiet, cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _newest_training_run(uri: str) -> tuple[str, str]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (newest, *_) = client.search_runs(experiments, "tags.`herd.kind` = 'pretrain'", order_by=["start_time DESC"])
    return newest.info.experiment_id, newest.info.run_id


def photograph(page: str, picture: Path, profile: Path, window: str = _WINDOW) -> None:
    """Write a picture of a page as Chromium shows it in a window of this width and height."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    subprocess.run(
        [
            chromium, *_CHROMIUM_FLAGS, f"--user-data-dir={profile}", f"--window-size={window}",
            f"--virtual-time-budget={_VIRTUAL_MILLISECONDS}", f"--screenshot={picture}", page,
        ],
        check=True, timeout=_PATIENCE_SECONDS, capture_output=True,
    )  # fmt: skip


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURE)
