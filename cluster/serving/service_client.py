"""A running `herd serve`, spoken to over HTTP by `herd generate --address`.

A service that is full or restarting is waited for; a call that was lost is sent again and gives the same text.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cluster.serving import generate_api
from cluster.serving.http_guard import API_KEY
from gpt_core.errors import CheckpointError, ResourceError, RunFailedError
from gpt_core.generation.request import Completion, GenerationRequest

_ANSWER_SECONDS = 900.0
_GREETING_SECONDS = 10.0
_PATIENCE_SECONDS = 300.0
_PAUSE_SECONDS = 1.0
# An answer that broke off, or is not of a service (a proxy's page), is as good as none.
_LOST = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException, ValueError)
_BUSY = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Service:
    """Where a service is, and the key it asks for."""

    address: str
    key: str | None = field(default=None, repr=False)

    def require(self, checkpoint: str, precision: str) -> str:
        """Return the precision in which the service computes; "auto" asks for no certain one.

        Raises:
            CheckpointError: It serves other weights.
            ResourceError: It computes in another precision, does not answer, turns the key away, or is something else.
        """
        match self._get("/v1/models"):
            case {"data": [{"checkpoint": str(served), "precision": str(computes_in)}]}:
                pass
            case _:
                raise ResourceError(self.address, "another service", "a herd serve", "correct the address")
        if served != checkpoint:
            found = f"a service of other weights ({served[:16]}...)"
            raise CheckpointError(
                self.address, found, f"{checkpoint[:16]}...", "name the checkpoint that is served there"
            )
        if precision not in {"auto", computes_in}:
            found, remedy = f"a service that computes in {computes_in}", "give the same --engine.precision"
            raise ResourceError(self.address, found, precision, remedy)
        return computes_in

    def _get(self, path: str) -> Any:
        if not (self.key or "").isprintable() or not (self.key or "").isascii():
            raise ResourceError(API_KEY, "a key that HTTP cannot carry", "printable ASCII", "choose another key")
        try:
            return self.ask(path, None)
        except urllib.error.HTTPError as error:
            remedy = f"export {API_KEY}" if error.code in {401, 403} else "correct the address"
            raise ResourceError(self.address, f"the answer {error.code}", "a herd serve", remedy) from error
        except _LOST as error:
            told = str(getattr(error, "reason", error))
            raise ResourceError(self.address, told, "a herd serve that answers", "start it, or correct it") from error

    def ask(self, path: str, body: bytes | None) -> Any:
        """Return the parsed answer to a GET, or to a POST of a JSON body; HTTPError and URLError as they come."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.address.rstrip("/") + path, body, headers)  # noqa: S310
        seconds = _GREETING_SECONDS if body is None else _ANSWER_SECONDS
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310 - settings allow http(s)
            return json.load(answer)


class ServiceCalls:
    """Sends requests to a service, several calls at a time.

    Args:
        service: Where.
        num_calls: Calls in flight at most.
    """

    def __init__(self, service: Service, num_calls: int) -> None:
        self._service = service
        self._pool = ThreadPoolExecutor(num_calls)

    def send(self, requests: Sequence[GenerationRequest]) -> Callable[[], list[list[Completion]]]:
        """Send requests and return what waits for their samples."""
        return self._pool.submit(self._complete, requests).result

    def _complete(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        body = generate_api.write_requests(requests)
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return generate_api.parse_completions(self._service.ask(generate_api.PATH, body), requests)
            except urllib.error.HTTPError as error:
                if error.code in {400, 413}:
                    return self._one_by_one(requests, error)
                if error.code not in _BUSY or time.monotonic() > give_up:
                    raise self._failed(f"the answer {error.code}") from error
                pause = _pause_asked_for(error)
            except _LOST as error:
                if time.monotonic() > give_up:
                    raise self._failed(str(error)) from error
                pause = _PAUSE_SECONDS
            time.sleep(pause)

    def _one_by_one(
        self, requests: Sequence[GenerationRequest], error: urllib.error.HTTPError
    ) -> list[list[Completion]]:
        """Find out which request the service refuses; it gets a sample that says why."""
        if len(requests) > 1:
            return [self._complete([request])[0] for request in requests]
        (request,) = requests
        try:
            told = json.load(error)["error"]["message"]
        except (*_LOST, KeyError, TypeError) as misfit:
            raise self._failed(f"the answer {error.code}, which does not say why") from misfit
        return [[Completion(request.id, 0, "", request.prompt_ids, (), "error", None, told)]]

    def _failed(self, found: str) -> RunFailedError:
        return RunFailedError(self._service.address, found, "completions", "look at the service, and run this again")


def _pause_asked_for(error: urllib.error.HTTPError) -> float:
    """Return the seconds of a Retry-After; one that is a date is as good as none."""
    asked = error.headers.get("Retry-After") or ""
    return min(float(asked), _PATIENCE_SECONDS) if asked.isdecimal() else _PAUSE_SECONDS
