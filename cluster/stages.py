"""How a job's stages run: resolve the input, skip what is done, else work on a cluster under a run.

A stage is a module with ``resolve``, ``finished`` and ``perform``. Ray starts only when a stage
has something to do.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cluster.progress import say
from cluster.record_book import Run
from cluster.session import Cluster, connect
from cluster.tracking import TrackingOptions, open_run
from gpt_core.errors import ResourceError
from gpt_core.settings import JobSettings

S = TypeVar("S", contravariant=True)
I = TypeVar("I")  # noqa: E741 - the inputs of a stage
R = TypeVar("R")


class Stage(Protocol[S, I, R]):
    """What a stage's module offers."""

    def resolve(self, settings: S, /) -> I:
        """Find and check the input, before cluster time is spent."""
        ...

    def finished(self, settings: S, inputs: I, /) -> R | None:
        """Return the result in the output folder; StaleOutputError if other settings made it."""
        ...

    def perform(self, settings: S, inputs: I, cluster: Cluster, run: Run, /) -> R:
        """Do the work, commit it, record it in the run and return what was made."""
        ...


class Stages:
    """Runs the stages of one job.

    Args:
        job: The job's settings: cluster and tracking.
        run: The job's run.
    """

    def __init__(self, job: JobSettings, run: Run, exits: contextlib.ExitStack) -> None:
        self._job, self._run, self._exits = job, run, exits
        self._cluster: Cluster | None = None
        self.seconds: dict[str, float | None] = {}
        """How long each stage took; None for a stage that was skipped."""

    def run(self, name: str, stage: Stage[S, I, R], settings: S, *, child: bool = True) -> R:
        """Return what the stage made, now or before; its records go to a child run, or to the job's own."""
        started = time.monotonic()
        output = getattr(settings, "output")  # noqa: B009 - every stage's settings have one
        inputs = stage.resolve(settings)
        if (done := stage.finished(settings, inputs)) is not None:
            say(f"{name}: skipped, {output} was made with these settings already")
            self.seconds[name] = None
            return done
        check_writable(output)
        say(f"{name}: writing {output}")
        cluster = self._connected()
        with self._run.child(name) if child else contextlib.nullcontext(self._run) as run:
            run.log_settings(_plain(settings))
            result = stage.perform(settings, inputs, cluster, run)
        self.seconds[name] = time.monotonic() - started
        return result

    def _connected(self) -> Cluster:
        if self._cluster is None:
            self._cluster = self._exits.enter_context(connect(self._job.cluster))
        return self._cluster


@contextlib.contextmanager
def stages_of(job: JobSettings, kind: str, output: str) -> Iterator[Stages]:
    """Open the job's run and yield what runs its stages; the cluster, if one was needed, is left at the end."""
    check_writable(output)
    folder = Path(output)
    options = TrackingOptions(**job.tracking.model_dump())
    with (
        open_run(options, name=folder.name, kind=kind, output=folder) as run,
        contextlib.ExitStack() as exits,
    ):
        run.log_settings(_plain(job))
        yield Stages(job, run, exits)


def run_alone(kind: str, stage: Stage[Any, Any, R], job: Any) -> R:
    """Run a job that is one stage."""
    with stages_of(job, kind, job.output) as stages:
        return stages.run(kind, stage, job, child=False)


def check_writable(output: str) -> None:
    """Make a local output folder and raise ResourceError where nothing can be written into it."""
    if "://" in output:
        return
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        probe = Path(output) / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResourceError(
            output,
            error.strerror or str(error),
            "an output folder that can be written",
            "choose another --output",
        ) from error


def _plain(settings: Any) -> dict[str, Any]:
    return settings.model_dump(mode="json")
