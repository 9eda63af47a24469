"""A real S3 server on loopback, and a proxy before it that throttles, cuts off, damages or stalls answers."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.fs
import pytest

from gpt_core import storage as storage_module
from gpt_core.storage import Storage

SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>'


@contextmanager
def s3_bucket(name: str) -> Iterator[str]:
    """Yield the URL of an empty bucket on a server of this process, to which the environment points."""
    server = pytest.importorskip("moto.server", reason="pip install 'moto[server]' to test S3")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        storage_module._filesystem.cache_clear()
        pyarrow.fs.S3FileSystem(endpoint_override=f"http://{host}:{port}", allow_bucket_creation=True).create_dir(name)
        yield f"s3://{name}"
        storage_module._filesystem.cache_clear()
    running.stop()


def upload(folder: Path, url: str) -> str:
    """Copy a folder to a URL, and return the URL."""
    storage = Storage.of(url)
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            target = storage.join(*path.relative_to(folder).parts)
            storage.write_atomically(target, lambda file, data=data: file.write(data))
    return url


class Proxy(ThreadingHTTPServer):
    """Passes requests on; for each but HEAD, `mood` is asked for "pass", "slow down", "cut", "flip" or "stall"."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.mood: Callable[[str], str] = lambda path: "pass"
        self.gets: Counter[str] = Counter()
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def proxy(self) -> Proxy:
        assert isinstance(self.server, Proxy)
        return self.server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.proxy.gets[path] += 1
        self._pass_on(self.proxy.mood(path))

    def do_PUT(self) -> None:
        self._pass_on(self.proxy.mood(self.path))

    do_POST = do_DELETE = do_PUT  # noqa: N815 - the base class's names

    def _pass_on(self, mood: str) -> None:
        self._body = self._read_body()
        if mood == "slow down":
            self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
        elif mood == "stall":
            self.proxy.ended.wait(60)
            self.close_connection = True
        else:
            self._answer(*self._asked(), mood=mood)

    def do_HEAD(self) -> None:
        self._body = b""
        status, headers, _ = self._asked()
        self._answer(status, headers, b"")

    def _read_body(self) -> bytes:
        """Return the body as it came, chunks' lengths included."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body, num_bytes = b"", 1
        while num_bytes:
            line = self.rfile.readline()
            num_bytes = int(line.partition(b";")[0], 16)
            body += line + (self.rfile.read(num_bytes + 2) if num_bytes else b"")
        while (line := self.rfile.readline()) != b"\r\n":
            body += line
        return body + line

    def _asked(self) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream)
        connection.request(self.command, self.path, self._body or None, dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), body

    def _answer(self, status: int, headers: dict[str, str], body: bytes, mood: str = "pass") -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if mood == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.wfile.write(body[: len(body) // 2] if mood == "cut" else body)
        self.close_connection = mood == "cut"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""
