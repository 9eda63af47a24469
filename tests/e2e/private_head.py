"""A real `ray start --head` in network and process namespaces of its own, and commands beside it.

Ray listens on all interfaces and `ray stop` ends every Ray of a machine by name; inside the
namespaces neither reaches anything else, and all of it ends with the process that holds them.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8265"
RAY_ADDRESS = "127.0.0.1:6399"
TOKEN = "0123456789abcdef" * 4
_UNSHARE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]


def why_not() -> str | None:
    """Return what keeps this machine from making the namespaces, None where it can."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"{program} is missing; install util-linux and iproute2"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces ({tried.stderr.strip()}); run as root" if tried.returncode else None


class PrivateHead:
    """A head with two CPUs that asks for a token."""

    def __init__(self, folder: Path, num_cpus: int = 2) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        # Not below pytest's folder: paths of sockets are short. Not Ray's own folder: others may use that.
        self._ray_folder = tempfile.TemporaryDirectory(prefix="herd-", ignore_cleanup_errors=True)
        start = (
            f"ip link set lo up && exec ray start --head --block --port {RAY_ADDRESS.partition(':')[2]} "
            f"--dashboard-host 127.0.0.1 --num-cpus {num_cpus} --object-store-memory 100000000 --disable-usage-stats"
        )
        with (folder / "head.log").open("wb") as log:
            self._holder = subprocess.Popen(
                [*_UNSHARE, "bash", "-c", start], stdout=log, stderr=log, env=self.environment(), cwd=folder
            )
        self._log = folder / "head.log"

    def environment(self, **changes: str | None) -> dict[str, str]:
        """Return the environment of the head and of a client that has its token; None removes a variable."""
        base = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        base |= {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": self._ray_folder.name,
        }
        return {name: value for name, value in (base | changes).items() if value is not None}

    def wait_until_ready(self) -> None:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            assert self._holder.poll() is None, self._log.read_text()
            if self._inner_pid() and self.run(["herd", "jobs", "list"], self.home)[0] == 0:
                return
            time.sleep(1)
        raise AssertionError(self._log.read_text())

    def start(self, words: list[str], folder: Path, **changes: str | None) -> subprocess.Popen[str]:
        """Start a command beside the head, `herd` as this checkout's; the address comes from the environment."""
        if words[0] == "herd":
            words = [sys.executable, "-m", "jobs", *words[1:]]
        address = {"RAY_API_SERVER_ADDRESS": ADDRESS}
        return subprocess.Popen(
            ["nsenter", "--target", str(self._inner_pid()), "--net", "--pid", "--mount", f"--wd={folder}", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**(address | changes)),
        )

    def interrupt(self, process: subprocess.Popen[str]) -> None:
        """Send a command started here what Ctrl-C sends."""
        os.kill(_child(process.pid) or process.pid, signal.SIGINT)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """End a command started here and everything below it at once, as a machine that is taken away does."""
        tree = psutil.Process(process.pid)
        for member in [*tree.children(recursive=True), tree]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.communicate()

    def run(self, words: list[str], folder: Path, **changes: str | None) -> tuple[int, str, str]:
        """Run a command beside the head; return its exit code and what it printed on stdout and stderr."""
        process = self.start(words, folder, **changes)
        out, err = process.communicate(timeout=100)
        return process.returncode, out, err

    def stop(self) -> None:
        self._holder.kill()
        self._holder.wait()
        self._ray_folder.cleanup()

    def _inner_pid(self) -> int | None:
        """Return the first process inside the namespaces, None while there is none."""
        return _child(self._holder.pid)


def _child(pid: int) -> int | None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None
