"""Promises of cluster.serving.http_server, over a real socket."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.serving import http_server
from cluster.serving.http_server import HttpServer, listen

REQUEST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n"


def asynchronous(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    return lambda: asyncio.run(asyncio.wait_for(test(), 20))


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[tuple[HttpServer, int]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = HttpServer(app, "127.0.0.1", port)
    yield server, port
    await server.close()


async def answer(send: Send, body: bytes = b"done") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": body})


async def read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


@asynchronous
async def test_requests_of_one_connection_are_answered_in_turn() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, (await read(receive))[-4:])

    async with serving(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in (b"abcd", b"x" * 5_000_000 + b"efgh"):
            writer.write(REQUEST % len(body) + body)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(4) == body[-4:]
        writer.close()


@asynchronous
async def test_work_for_a_client_that_left_is_cancelled() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with serving(app) as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % 1 + b"a")
        await begun.wait()
        assert not ended.is_set()
        writer.close()
        assert await ended.wait()


@asynchronous
async def test_work_after_the_last_byte_of_an_answer_is_not_cancelled() -> None:
    finished = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        await answer(send)
        await asyncio.sleep(0.3)
        finished.set()

    async with serving(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % 1 + b"a")
        await reader.readuntil(b"done")
        writer.close()
        assert await finished.wait()


@asynchronous
async def test_a_body_that_is_not_read_is_not_taken_in() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.5)
        assert (await receive())["more_body"]
        await answer(send)

    async with serving(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % 200_000_000 + b"x" * 100_000_000)
        unsent = asyncio.ensure_future(writer.drain())
        await reader.readuntil(b"done")
        assert not unsent.done(), "a hundred megabytes were taken in"
        unsent.cancel()
        writer.transport.abort()


@asynchronous
async def test_a_head_without_end_is_not_taken_in() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)

    async with serving(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n" + b"a: b\r\n" * 20_000)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
        writer.close()


HALF_A_HEAD = b"GET / HTTP/1.1\r\nHost: here\r\n"


@pytest.mark.parametrize(
    "sent", [b"", HALF_A_HEAD, REQUEST % 1 + b"a" + HALF_A_HEAD], ids=["silent", "first", "second"]
)
def test_a_connection_whose_next_head_never_ends_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_KEEP_ALIVE_SECONDS", 0.5)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)

    async def drip() -> None:
        async with serving(app) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            reading = asyncio.ensure_future(reader.read())
            while not reading.done():
                if sent:
                    writer.write(b"a")
                await asyncio.sleep(0.1)
            assert reading.result().count(b"HTTP/1.1 200") == sent.count(b"POST")
            writer.close()

    asynchronous(drip)()


def test_the_time_for_a_head_is_not_that_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_KEEP_ALIVE_SECONDS", 0.3)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.9)
        await answer(send)

    async def ask_twice() -> None:
        async with serving(app) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(REQUEST % 1 + b"a")
                assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200")
            writer.close()

    asynchronous(ask_twice)()


@asynchronous
async def test_a_client_that_offers_http_2_is_answered_in_http_1() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, await read(receive))

    async with serving(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        offer = b"Host: here\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"
        writer.write(REQUEST.replace(b"Host: here\r\n", offer) % 4 + b"abcd")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(4) == b"abcd"
        writer.close()


@asynchronous
async def test_a_stream_ends_whose_client_left_with_another_request_in_line() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        try:
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async with serving(app) as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((REQUEST % 1 + b"a") * 2)
        await begun.wait()
        writer.close()
        assert await ended.wait()


@asynchronous
async def test_closing_ends_what_is_under_way_and_takes_nothing_more() -> None:
    begun = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await asyncio.sleep(0.5)
        await answer(send)

    async with serving(app) as (server, port):
        server.check()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % 1 + b"a")
        await begun.wait()
        closing = asyncio.ensure_future(server.close())
        await reader.readuntil(b"done")
        await closing
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(RuntimeError, match="has ended"):
            server.check()


def test_a_taken_address_is_an_error_at_once() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])
