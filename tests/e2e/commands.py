"""Runs the project's commands as a user types them, and reads what they leave."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


def herd(*words: str, folder: Path, timeout_seconds: float = 240) -> Finished:
    """Run `herd WORDS` in a folder."""
    done = subprocess.run(
        command(words),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def herd_interrupted(*words: str, folder: Path, at: str, after_seconds: float = 0.0) -> Finished:
    """Run `herd WORDS` and send Ctrl-C, to the whole group as a terminal does, once `at` is printed on stderr."""
    process = subprocess.Popen(
        command(words),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    seen = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if at in line:
                seen.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert seen.wait(180), f"{at!r} did not come; stderr: {''.join(lines)}"
    time.sleep(after_seconds)
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(120)
    reader.join(10)
    assert process.stdout is not None
    return Finished(code, process.stdout.read(), "".join(lines))


def command(words: tuple[str, ...]) -> list[str]:
    """Return the command line of `herd WORDS`."""
    return [sys.executable, "-m", "jobs", *words]


def environment() -> dict[str, str]:
    """Return the environment of a command: nothing of this process's Ray or MLflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}
