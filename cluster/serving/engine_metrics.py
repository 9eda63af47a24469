"""Prometheus metrics of an engine, through Ray's own exporter on every node.

They count samples without a slot, slots and those in use, tokens drawn, prompt tokens computed, and
the time from a request's arrival at the replica to its first token. All begin with ``herd_engine_``,
and Ray Serve labels them with the application, the deployment and the replica.
"""

import threading
import time

from ray.serve.metrics import Counter, Gauge, Histogram

from cluster.serving.engine_loop import EngineLoop

_SECONDS_BETWEEN_REPORTS = 1.0
_FIRST_TOKEN_BOUNDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]


def report_metrics(loop: EngineLoop) -> None:
    """Report the loop's numbers every second, from a thread of their own, as long as the process lives."""
    threading.Thread(target=_Reporter(loop).run, name="engine metrics", daemon=True).start()


class _Reporter:
    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._waiting = Gauge("herd_engine_waiting", "Samples without a slot.")
        self._slots = Gauge("herd_engine_slots", "Slots of the engine.")
        self._slots_in_use = Gauge("herd_engine_slots_in_use", "Slots with a sample in them.")
        self._drawn = Counter("herd_engine_drawn_tokens", "Tokens drawn.")
        self._prefilled = Counter("herd_engine_prefilled_tokens", "Prompt tokens computed.")
        self._first_token = Histogram(
            "herd_engine_first_token_seconds", "Arrival at the replica to first token.", _FIRST_TOKEN_BOUNDS
        )
        self._last = loop.statistics()

    def run(self) -> None:
        while self._loop.failure is None:
            time.sleep(_SECONDS_BETWEEN_REPORTS)
            self._report()

    def _report(self) -> None:
        now, last = self._loop.statistics(), self._last
        self._waiting.set(now.num_waiting)
        self._slots.set(now.num_slots)
        self._slots_in_use.set(now.num_slots_in_use)
        # A counter refuses to be increased by nothing.
        if now.drawn_tokens > last.drawn_tokens:
            self._drawn.inc(now.drawn_tokens - last.drawn_tokens)
        if now.prefilled_tokens > last.prefilled_tokens:
            self._prefilled.inc(now.prefilled_tokens - last.prefilled_tokens)
        for seconds in self._loop.take_first_token_seconds():
            self._first_token.observe(seconds)
        self._last = now
