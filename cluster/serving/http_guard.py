"""What stands before every route of the service: who may call, under which name, and with how much.

Pure ASGI, so that nothing of a request is read before it has passed.
"""

import hashlib
import hmac
import ipaddress
import os
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.serving.api_error import ApiError
from gpt_core.errors import ResourceError

API_KEY = "HERD_API_KEY"
OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that answer without a key, for load balancers; they tell nothing of anybody's requests."""
PAGE_PATH = "/page/"
"""Files of the page at ``/``, which load without a key and tell nothing of the model; the page asks for the key."""
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call. Made on the machine that has the key; travels without it."""

    key_digest: bytes | None
    """SHA-256 of the key a caller must bring; None lets every caller in."""
    host_names: frozenset[str] | None
    """Host headers that are answered; None answers all. Keeps a page in the user's own browser, which can have
    its name resolve to this machine, from calling a service without a key."""


def access_for(host: str) -> Access:
    """Return the access rules of a service that listens on ``host``.

    Raises:
        ResourceError: The address is not loopback and the environment has no key.
    """
    key = os.environ.get(API_KEY, "").strip()
    if key:
        return Access(hashlib.sha256(key.encode()).digest(), None)
    if not is_loopback(host):
        raise ResourceError(
            f"host {host}",
            f"an address others can reach and no {API_KEY} in the environment",
            "a key callers must bring",
            f"export {API_KEY}, or leave --host at 127.0.0.1",
        )
    return Access(None, _LOOPBACK_NAMES | {host})


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Lets a request through to the application, or answers it with an error.

    Args:
        app: The application behind.
        access: Who may call.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        names = self._access.host_names
        if names is not None and _host_name(headers.get("host", "")) not in names:
            raise ApiError(403, f"this service answers to localhost alone; set {API_KEY} to open it", None, "host")
        if self._access.key_digest is not None and not _is_open(scope["path"]):
            self._check_key(headers.get("authorization", ""))

    def _check_key(self, header: str) -> None:
        scheme, _, key = header.partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        assert self._access.key_digest is not None
        if not hmac.compare_digest(given, self._access.key_digest) or scheme.lower() != "bearer":
            message = "no valid API key: send the header 'Authorization: Bearer KEY'"
            raise ApiError(401, message, None, "invalid_api_key")


def error_response(error: ApiError) -> JSONResponse:
    """Return the answer of an error."""
    return JSONResponse(error.body, error.status, error.headers)


async def read_json(request: Request, max_bytes: int) -> Any:
    """Return the parsed JSON body of a request, reading no more than ``max_bytes``.

    Raises:
        ApiError: 413 for a longer body, 415 for another content type, 400 for one that is no JSON.
    """
    import orjson

    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        # A browser sends JSON to another site only after asking, which nobody here answers.
        raise ApiError(415, f"content type: found {content_type!r}; expected application/json", None, "content_type")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            message = f"request body: found more than {max_bytes:,} bytes; send fewer prompts a request"
            raise ApiError(413, message, None, "request_too_large")
    try:
        return orjson.loads(bytes(body))
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"request body: no JSON: {error}", None, "invalid_json") from error


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path == "/" or path.startswith(PAGE_PATH)


def _host_name(header: str) -> str:
    """Return a Host header without its port and brackets."""
    name = header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]
    return name.lower()
