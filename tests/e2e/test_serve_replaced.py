"""`herd serve` on a cluster, in place of another, after one that was killed, and taken down by others."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.private_head import ADDRESS, RAY_ADDRESS, PrivateHead
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
PORT = 8010
HEALTH = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{PORT}/health', timeout=5).status)"


@pytest.fixture
def start(head: PrivateHead, tmp_path: Path) -> Callable[[int], subprocess.Popen[str]]:
    """Return what starts a `herd serve` at a port."""
    words = ["--checkpoint", str(write_tiny_checkpoint(tmp_path / "model")), "--cluster.address", RAY_ADDRESS]
    words += ["--engine.precision", "fp32", "--engine.num_slots", "2"]
    return lambda port: head.start(["herd", "serve", *words, "--port", str(port)], tmp_path)


def said_until_it_listens(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "listening on" in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def test_the_first_ends_and_leaves_the_second_that_took_its_place(
    head: PrivateHead, start: Callable[[int], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = start(PORT)
    said_until_it_listens(first)
    second = start(PORT)
    assert f"replacing herd-serve-{PORT}, which runs on this cluster already" in said_until_it_listens(second)
    out, err = first.communicate(timeout=60)
    assert f"leaving herd-serve-{PORT} to the job that took its place" in err
    assert "until another job took its place" in out
    assert first.returncode == 0
    assert head.run([sys.executable, "-c", HEALTH], tmp_path)[1].strip() == "200"
    head.interrupt(second)
    second.communicate(timeout=60)
    assert head.run([sys.executable, "-c", HEALTH], tmp_path)[0] != 0


def test_what_a_killed_one_left_is_taken_down_and_one_that_others_take_down_says_so(
    head: PrivateHead, start: Callable[[int], subprocess.Popen[str]], tmp_path: Path
) -> None:
    killed = start(PORT)
    said_until_it_listens(killed)
    head.kill(killed)
    next_one = start(PORT + 1)
    assert f"taking down herd-serve-{PORT}, whose job has died" in said_until_it_listens(next_one)
    assert head.run([sys.executable, "-c", HEALTH], tmp_path)[0] != 0
    assert head.run(["serve", "shutdown", "--yes", "--address", ADDRESS], tmp_path)[0] == 0
    _, err = next_one.communicate(timeout=60)
    assert f"herd-serve-{PORT + 1}: found no such application any more" in err
    assert next_one.returncode == 1
