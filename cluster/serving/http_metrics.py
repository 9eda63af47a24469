"""Prometheus metrics of a service's HTTP requests, through Ray's own exporter.

They count requests by the status of their answer and the time until its last byte was sent. Ray Serve labels them
with the application, the deployment and the replica.
"""

import time

from ray.serve.metrics import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BOUNDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
_LEFT = 499
"""Status of a request whose client left before the answer began."""


class Counted:
    """Passes requests on to an application and counts them.

    Args:
        app: That application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._requests = Counter("herd_http_requests", "Requests, by status.", tag_keys=("status",))
        self._seconds = Histogram("herd_http_request_seconds", "Request to the answer's last byte.", _BOUNDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        begun, status = time.monotonic(), _LEFT

        async def send_noticing(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_noticing)
        finally:
            if scope["type"] == "http":
                self._requests.inc(tags={"status": str(status)})
                self._seconds.observe(time.monotonic() - begun)
