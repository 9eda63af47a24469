"""Promises of cluster.serving.ingress, without Ray."""

import asyncio
import socket
from typing import Any

import pytest

from cluster.serving.http_guard import Access
from cluster.serving.ingress import ListeningIngress
from gpt_core.settings import ServeSettings


class Handle:
    def options(self, **_: Any) -> "Handle":
        return self


def test_an_ingress_that_was_drained_is_not_replaced_while_it_waits_for_its_end() -> None:
    facts = {"name": "tiny", "tokenizer": "bytes", "window_tokens": 8, "fingerprint": "herd-0", "created": 0}

    async def drained() -> ListeningIngress:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        settings = ServeSettings(checkpoint="none", port=port, page=False)
        ingress = ListeningIngress.__new__(ListeningIngress)
        await ingress.__init__(Handle(), facts, settings, Access(None, None))
        ingress.check_health()
        assert await ingress.drain(1) == 0
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        return ingress

    asyncio.run(drained()).check_health()
