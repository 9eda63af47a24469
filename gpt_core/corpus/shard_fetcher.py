"""Remote shards fetched into the cache before training reads them, in the order in which it will.

Started by the training loop beside its :class:`gpt_core.training.prefetch.Prefetcher`. Which shards a step reads is
arithmetic on the order, so the thread here walks the coming steps and fetches what they need, as far ahead
as half of the cache holds; the other half keeps what was read, for its next use.
"""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from gpt_core.corpus.shard_cache import RemoteShard, ShardCache
from gpt_core.errors import HerdError

_MOST_STEPS_AHEAD = 1000


class ShardFetcher:
    """Fetches the shards of the coming steps on a thread of its own.

    Args:
        cache: Gets the shards.
        shards_of: Returns the shards a step reads, in the order in which it reads them; called for one
            step after another, on the thread alone.
        first_step: Where to begin.
        stop_step: Where to end.
        ahead_bytes: Bytes of the shards of all steps from the reader's on to the thread's; None is half of the cache.
    """

    def __init__(
        self,
        cache: ShardCache,
        shards_of: Callable[[int], Iterable[RemoteShard]],
        first_step: int,
        stop_step: int,
        ahead_bytes: int | None = None,
    ) -> None:
        self._cache, self._shards_of = cache, shards_of
        self._steps = range(first_step, stop_step)
        self._ahead_bytes = cache.max_bytes // 2 if ahead_bytes is None else ahead_bytes
        self._reading = first_step
        self._moved = threading.Condition()
        self._closing = False
        self._ahead: dict[RemoteShard, int] = {}  # the last step known to read it
        self._thread = threading.Thread(target=self._fetch_all, name="shard-fetcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._moved:
            self._closing = True
            self._moved.notify()
        self._thread.join(timeout=1.0)  # a download under way is of use to the next worker, and to nobody here

    def reading(self, step: int) -> None:
        """Say which step is being read: what earlier ones needed makes room for later ones."""
        with self._moved:
            self._reading = step
            self._moved.notify()

    def _fetch_all(self) -> None:
        for step in self._steps:
            if not self._wait_until(lambda step=step: step < self._reading + _MOST_STEPS_AHEAD):
                return
            shards = self._shards_of(step)
            for shard in shards if step >= self._reading else ():
                known = shard in self._ahead
                if not (known or self._wait_until(lambda shard=shard: self._fits(shard))):
                    return
                self._ahead[shard] = step
                if known:
                    continue
                # Its reader meets the same error, where it can be told.
                with suppress(HerdError, OSError):
                    if (held := self._cache.hold(shard)) is not None:
                        held.close()

    def _fits(self, shard: RemoteShard) -> bool:
        """Return whether the shard has room beside those that are still to be read."""
        for past in [one for one, last in self._ahead.items() if last < self._reading]:
            del self._ahead[past]
        return not self._ahead or sum(one.num_bytes for one in self._ahead) + shard.num_bytes <= self._ahead_bytes

    def _wait_until(self, is_so: Callable[[], bool]) -> bool:
        """Wait until it is so; return False where the end comes first."""
        with self._moved:
            self._moved.wait_for(lambda: self._closing or is_so())
            return not self._closing
