"""The HTTP server of `herd serve`: it runs inside the ingress replica, with no process between it and the clients."""

import asyncio
import socket

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 90  # until a request's head is whole, from the start or the end of the answer before
_CLOSING_SECONDS = 2


class HttpServer:
    """Answers at an address from now on, on the event loop that runs.

    Args:
        app: What answers.
        host: Address to listen on.
        port: TCP port to listen on.

    Raises:
        OSError: The address is not there to listen on.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        config = uvicorn.Config(
            LeavesWithClient(app),
            # Not httptools, though that takes 0.1 ms less: it reads heads without end into memory, loses the body of
            # a client that offers HTTP/2, and misses one that left while its next request waits.
            http=_Punctual,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        self._server = uvicorn.Server(config)
        serving = self._server.serve([listen(host, port)])
        self._task = asyncio.get_running_loop().create_task(serving)

    def check(self) -> None:
        """Raise RuntimeError once it answers no more."""
        if self._task.done():
            raise RuntimeError("the HTTP server has ended")

    async def close(self) -> None:
        """Take no more connections, and return when the answers under way have been sent."""
        self._server.should_exit = True
        await self._task


class _Punctual(H11Protocol):
    """Closes a connection on which no request comes, or never all of one's head: uvicorn would wait without end."""

    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] - as in uvicorn
        super().connection_made(transport)
        self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._giving_up is None:
            self._giving_up = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _stop_watching(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


class LeavesWithClient:
    """Cancels what an application does for a request whose client has left.

    Args:
        app: That application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        received: asyncio.Queue[Message] = asyncio.Queue(1)  # what the application does not read stays unread
        is_answered = False

        async def send_noticing(message: Message) -> None:
            nonlocal is_answered
            is_answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        async def watch() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await received.put(message)
            if not is_answered:
                working.cancel()

        working = asyncio.ensure_future(self._app(scope, received.get, send_noticing))
        watching = asyncio.ensure_future(watch())
        try:
            await working
        except asyncio.CancelledError:
            if not watching.done():  # the server is being closed
                raise
        finally:
            watching.cancel()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        OSError: The address is not there to listen on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
