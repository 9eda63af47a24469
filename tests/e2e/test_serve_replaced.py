"""Two `herd serve`s at one port of a cluster."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.private_head import RAY_ADDRESS, PrivateHead
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
PORT = 8010
HEALTH = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{PORT}/health', timeout=5).status)"


def test_the_first_ends_and_leaves_the_second_that_took_its_place(head: PrivateHead, tmp_path: Path) -> None:
    words = ["--checkpoint", str(write_tiny_checkpoint(tmp_path / "model")), "--cluster.address", RAY_ADDRESS]
    words += ["--port", str(PORT), "--engine.precision", "fp32", "--engine.num_slots", "2"]

    def start() -> subprocess.Popen[str]:
        return head.start(["herd", "serve", *words], tmp_path)

    def said_until_it_listens(process: subprocess.Popen[str]) -> str:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "listening on" in line:
                return "".join(lines)
        raise AssertionError("".join(lines))

    first = start()
    said_until_it_listens(first)
    second = start()
    assert f"replacing herd-serve-{PORT}, which runs on this cluster already" in said_until_it_listens(second)
    out, err = first.communicate(timeout=60)
    assert f"leaving herd-serve-{PORT} to the job that took its place" in err
    assert "until another job took its place" in out
    assert first.returncode == 0
    assert head.run([sys.executable, "-c", HEALTH], tmp_path)[1].strip() == "200"
    head.interrupt(second)
    second.communicate(timeout=60)
    assert head.run([sys.executable, "-c", HEALTH], tmp_path)[0] != 0
