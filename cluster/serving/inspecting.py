"""Looking into a checkpoint: the replica's side, the call to it from the ingress, and the page as a file.

A replica reads the checkpoint's fp32 weights a second time when somebody first looks: services
that only complete prompts never pay for them.
"""

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.serving.engine_client import answer_or_cancel
from gpt_core.errors import UserError
from gpt_core.settings import InspectSettings
from gpt_core.storage import Storage
from gpt_core.tokens.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from gpt_core.inspection.inspection import Inspector, Query

MAX_INSPECTIONS = 4
"""At a time: each computes for a while on the cores that draw other callers' tokens."""
_TRIES = 3


class CheckpointInspector:
    """An inspector of a checkpoint, loaded at the first call; looks into a few prompts at a time.

    Args:
        checkpoint: Path of one checkpoint folder.
        tokenizer: The checkpoint's.
        device: Where to compute.
    """

    def __init__(self, checkpoint: str, tokenizer: Tokenizer, device: str = "cpu") -> None:
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._device = device
        self._loading = threading.Lock()
        self._inspector: Inspector | None = None
        self._threads = ThreadPoolExecutor(MAX_INSPECTIONS)

    async def inspect(self, query: "Query") -> dict[str, Any] | UserError:
        """Return what was asked for, or, since errors cross processes badly, the mistake in the query.

        A query that is left before its turn is not computed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._inspect, query)

    def _inspect(self, query: "Query") -> dict[str, Any] | UserError:
        try:
            return self._loaded().inspect(query)
        except UserError as error:
            return error

    def _loaded(self) -> "Inspector":
        from gpt_core.inspection.inspection import Inspector
        from gpt_core.training import checkpoint as checkpoints

        with self._loading:
            if self._inspector is None:
                loaded = checkpoints.load(self._checkpoint)
                self._inspector = Inspector(loaded.weights, loaded.shape, self._tokenizer, self._device)
            return self._inspector


class InspectClient:
    """Asks the replicas of the Generator deployment.

    Args:
        handle: The handle of the deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def inspect(self, query: "Query") -> dict[str, Any]:
        """Return what a replica answers; another one is asked where it dies meanwhile.

        Raises:
            UserError: A mistake in the query.
        """
        from ray.exceptions import RayActorError

        answer: Any = None
        for last in (*[False] * (_TRIES - 1), True):
            with contextlib.nullcontext() if last else contextlib.suppress(RayActorError):
                answer = await answer_or_cancel(self._handle.inspect.remote(query))
                break
        if isinstance(answer, UserError):
            raise answer
        return answer


@dataclass(frozen=True, slots=True)
class WrittenPage:
    """What `herd inspect` wrote."""

    num_tokens: int
    num_bytes: int
    expected: str
    """The likeliest next token."""
    probability: float


def write_page(settings: InspectSettings) -> WrittenPage:
    """Write the page for one prompt as one HTML file, atomically.

    Raises:
        CheckpointError: There is no whole checkpoint.
        UserError: The prompt is too long, or the position is not there.
    """
    from cluster.serving.page_files import page_in_one_file
    from gpt_core.inspection.inspection import Inspector
    from gpt_core.inspection.recording import record
    from gpt_core.training import checkpoint as checkpoints

    loaded = checkpoints.load(settings.checkpoint)
    tokenizer = load_tokenizer(loaded.tokenizer["name"])
    ids = tuple(tokenizer.encode_prompt(settings.prompt).tolist()) or (tokenizer.end_of_text,)
    recorded = record(Inspector(loaded.weights, loaded.shape, tokenizer), ids, settings.position)
    recorded["answer"]["name"] = loaded.path.name
    content = page_in_one_file(recorded).encode("utf-8")
    Storage.of(settings.html).write_atomically(settings.html, lambda file: file.write(content))
    best = recorded["answer"]["next"]["candidates"][0]
    return WrittenPage(len(ids), len(content), best["text"], best["probability"])
