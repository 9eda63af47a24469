"""`herd serve` that is told to stop: what is in progress is finished, nothing more is taken."""

import json
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commands import command, environment
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# So many tokens that the stream is still on its way when the signal comes.
NUM_TOKENS = 4000


class Serving:
    """A `herd serve` in a process of its own, and what it said on stderr."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        engine = ["--engine.precision", "fp32", "--engine.num_slots", "4"]
        words = ("serve", "--checkpoint", str(folder), "--port", str(self.port), "--drain_seconds", "120", *engine)
        self.process = subprocess.Popen(
            command((*words, "--cluster.num_cpus", "2")),
            cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_until_listening(self) -> None:
        assert self._listening.wait(150), "".join(self.lines)

    def post(self, **body: Any) -> Any:
        data = json.dumps({"temperature": 0.2, "seed": 1, "prompt": "x", **body}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/completions", data, headers)
        return urllib.request.urlopen(request, timeout=120)

    def end(self) -> None:
        self.process.kill()
        self._reader.join(30)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "listening on" in line:
                self._listening.set()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    write_tiny_checkpoint(tmp_path, num_positions=NUM_TOKENS + 1)
    serving = Serving(tmp_path)
    yield serving
    serving.end()


def test_after_sigterm_a_stream_is_finished_new_requests_get_503_and_the_command_ends_well(serving: Serving) -> None:
    serving.wait_until_listening()
    with serving.post(max_tokens=NUM_TOKENS, stream=True, stream_options={"include_usage": True}) as stream:
        first = stream.readline()
        assert first.startswith(b"data: ")
        serving.process.send_signal(signal.SIGTERM)
        refused = _first_refusal(serving)
        events = [line.removeprefix(b"data: ") for line in stream if line.startswith(b"data: ")]
    assert refused.code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert json.load(refused)["error"]["code"] == "shutting_down"
    *chunks, usage, end = events
    assert end.strip() == b"[DONE]"
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
    assert json.loads(usage)["usage"]["completion_tokens"] == NUM_TOKENS
    assert serving.process.wait(60) == 0
    assert serving.process.stdout is not None
    assert "until it was stopped" in serving.process.stdout.read()


def _first_refusal(serving: Serving) -> urllib.error.HTTPError:
    """Ask until the service, which has a second to notice the signal, turns a request away."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        try:
            serving.post(max_tokens=1).close()
        except urllib.error.HTTPError as error:
            return error
        time.sleep(0.05)
    pytest.fail("requests were taken after SIGTERM")
