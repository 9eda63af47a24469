"""Shows what a submitted job prints, through lost connections, until it ends."""

import asyncio
import contextlib
import re
import time

from cluster.progress import say
from cluster.submission.head import Head, HeadSilentError, JobState
from gpt_core.errors import RunFailedError

_POLL_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_PATIENCE_SECONDS = 300.0
_LAST_LINES_SECONDS = 5.0
# What Ray's own job supervisor writes before the job's first line.
_PREAMBLE = re.compile(r"(.*job_manager\.py.*Runtime env is setting up\.|Running entrypoint for job .*)")


class Follower:
    """Follows one job; may run again after an interrupt and shows no line twice."""

    def __init__(self, head: Head, job_id: str) -> None:
        self._head, self._job_id = head, job_id
        self._shown = 0
        self._line = ""
        self._in_preamble = True
        self._message = ""
        self._has_told_stream = False

    def run(self) -> JobState:
        """Show the job's lines until it ends and return its last state.

        Raises:
            RunFailedError: If the head does not answer for five minutes, or forgot the job.
        """
        state = asyncio.run(self._follow())
        if self._line:
            self._print(self._line)
            self._line = ""
        return state

    async def _follow(self) -> JobState:
        silent_since: float | None = None
        while True:
            tail = asyncio.create_task(self._tail())
            try:
                state = await self._watch(tail)
                silent_since = None
                if state.finished:
                    return state
            except HeadSilentError as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _PATIENCE_SECONDS:
                    raise self._lost(error) from error
            finally:
                tail.cancel()
                await asyncio.gather(tail, return_exceptions=True)
            await asyncio.sleep(_POLL_SECONDS if self._has_told_stream else _RETRY_SECONDS)

    async def _watch(self, tail: asyncio.Task[None]) -> JobState:
        """Return the job's state once its log stream ended or the job did."""
        while True:
            await asyncio.wait({tail}, timeout=_POLL_SECONDS)
            state = await asyncio.to_thread(self._head.job, self._job_id)
            if state.finished:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.wait({tail}), _LAST_LINES_SECONDS)
            if tail.done() and (error := tail.exception()):
                await self._read(error)
            if state.finished or tail.done():
                return state
            self._say_waiting(state)

    async def _tail(self) -> None:
        """Print the log; a stream begins anew with the job's first line, so what was shown is left out."""
        position = 0
        async for piece in self._head.tail(self._job_id):
            self._show(piece, position)
            position += len(piece)

    async def _read(self, error: BaseException) -> None:
        """Print the log without its stream, which some proxies do not let through."""
        if not self._has_told_stream:
            say(f"{self._job_id}: no stream of its lines ({error}); asking for them every {_POLL_SECONDS:g} s")
        self._has_told_stream = True
        self._show(await asyncio.to_thread(self._head.logs, self._job_id), 0)

    def _show(self, text: str, position: int) -> None:
        """Print what was not shown yet of a text that begins at this character of the log."""
        fresh = text[max(self._shown - position, 0) :]
        self._shown = max(self._shown, position + len(text))
        *lines, self._line = (self._line + fresh).split("\n")
        for line in lines:
            self._print(line)

    def _print(self, line: str) -> None:
        if self._in_preamble and _PREAMBLE.fullmatch(line):
            return
        self._in_preamble = False
        print(line, flush=True)  # noqa: T201

    def _say_waiting(self, state: JobState) -> None:
        if state.status == "PENDING" and state.message != self._message:
            self._message = state.message
            say(f"{self._job_id}: {state.message}")

    def _lost(self, error: HeadSilentError) -> RunFailedError:
        return RunFailedError(
            f"job {self._job_id}",
            f"no answer from {self._head.address} for {_PATIENCE_SECONDS:g} s ({error.found})",
            "a head that answers",
            f"the job may go on: herd jobs logs {self._job_id} --follow --cluster.address {self._head.address}",
        )
