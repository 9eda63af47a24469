"""A real mlflow server on loopback, and a proxy that stands in front of it and is not always willing."""

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path


class Proxy(socketserver.ThreadingTCPServer):
    """Stands in front of a server and, by `mood`, passes on, delays, drops, answers 503 or swallows the answer."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.mood: Callable[[], str] = lambda: "pass"
        self.delay_seconds = 0.0
        super().__init__(("127.0.0.1", 0), _Pass)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def uri(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Broken connections are what this is for."""


class _Pass(socketserver.StreamRequestHandler):
    """One request a connection: the answer is asked to close it, so that every call meets the mood anew."""

    @property
    def proxy(self):
        assert isinstance(self.server, Proxy)
        return self.server

    def handle(self):
        request = self._request()
        if not request:
            return
        mood = self.proxy.mood()
        time.sleep(self.proxy.delay_seconds)
        if mood == "drop":
            return
        if mood == "error":
            self.wfile.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        answer = self._answer(request)
        if mood != "swallow":  # the store has acted, the caller never learns it
            self.wfile.write(answer)

    def _request(self):
        head, num_bytes = b"", 0
        while line := self.rfile.readline():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                num_bytes = int(value)
            if line == b"\r\n":
                return head + b"Connection: close\r\n\r\n" + self.rfile.read(num_bytes)
            if name.lower() != b"connection":
                head += line
        return b""

    def _answer(self, request):
        answer = b""
        with socket.create_connection(("127.0.0.1", self.proxy.server_port)) as upstream:
            upstream.sendall(request)
            while data := upstream.recv(65536):
                answer += data
        return answer


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """Run a server over the folder's database for the length of the block; then kill it with all its processes."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "art")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"no answer from {url}")
