"""How a job's stages run: resolve the input, skip what is done, else work on a cluster under a run.

A stage is a module with ``resolve``, ``finished``, ``perform`` and ``record``. Ray starts only when a stage
has something to do. A driver that is killed between its commit and its run's end leaves a result whose run is
still open: whoever finds the result records it once more, which changes nothing that was recorded, and ends the run.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from cluster.progress import say
from cluster.recording.node_metrics import sampled_nodes
from cluster.recording.record_book import Run, unfinished_runs
from cluster.session import Cluster, connect, require_own_cpus
from cluster.tracking import TrackingOptions, open_run, send_rest, sole_job
from gpt_core import sealed_json
from gpt_core.errors import ResourceError, StaleOutputError
from gpt_core.ledger import first_difference
from gpt_core.settings import FinetuneJob, JobSettings, PretrainJob
from gpt_core.storage import Location, Storage, is_url, local_folder

REJECTS = "rejects.jsonl"
_RUN_KEY = "tracking/run-key"  # beside where a local output has its records

S_contra = TypeVar("S_contra", contravariant=True)
I = TypeVar("I")  # noqa: E741 - the inputs of a stage
R_co = TypeVar("R_co", covariant=True)


class Stage(Protocol[S_contra, I, R_co]):
    """What a stage's module offers."""

    def resolve(self, settings: S_contra, /) -> I:
        """Find and check the input, before cluster time is spent."""
        ...

    def finished(self, settings: S_contra, inputs: I, /) -> R_co | None:
        """Return the result in the output folder; StaleOutputError if other settings made it."""
        ...

    def perform(self, settings: S_contra, inputs: I, cluster: Cluster, run: Run, /) -> R_co:
        """Do the work, commit it, record it in the run and return what was made."""
        ...

    def record(self, run: Run, settings: S_contra, inputs: I, result: Any, /) -> None:
        """Record a committed result; the same again changes nothing."""
        ...


class Stages:
    """Runs the stages of one job.

    Args:
        job: The job's settings: cluster and tracking.
        run: The job's run.
        exits: Where the cluster, once connected, is left.
        done: Inputs and results of the stages that were looked up before the run was opened.
    """

    def __init__(
        self, job: JobSettings, run: Run, exits: contextlib.ExitStack, done: Mapping[str, tuple[Any, Any]]
    ) -> None:
        self._job, self._run, self._exits, self._done = job, run, exits, done
        self._cluster: Cluster | None = None
        self.seconds: dict[str, float | None] = {}
        """How long each stage took; None for a stage that was skipped."""

    def run(self, name: str, stage: Stage[S_contra, I, R_co], settings: S_contra) -> R_co:
        """Return what the stage made, now or before; its records go to a child of the job's run."""
        self.seconds[name] = None
        found = self._done.get(name)
        with contextlib.nullcontext() if found else self._alone_in(settings):
            inputs, done = found or _looked_up(name, stage, settings)
            if done is None:
                with self._run.child(name) as child:
                    child.log_settings(_plain(settings))
                    return self.perform(name, stage, settings, inputs, child)
        if name in unfinished_runs(self._run.folder):
            with self._run.child(name) as child:
                stage.record(child, settings, inputs, done)
        return done

    def _alone_in(self, settings: Any) -> contextlib.AbstractContextManager[None]:
        """Keep a job that is this stage alone out of the stage's folder, before it is looked up what is done there."""
        folder = local_folder(settings.output).absolute()
        return contextlib.nullcontext() if folder == self._run.folder.parent else sole_job(folder)

    def perform(self, name: str, stage: Stage[S_contra, I, R_co], settings: S_contra, inputs: I, run: Run) -> R_co:
        """Do a stage's work on the cluster and return what it made."""
        started = time.monotonic()
        output = getattr(settings, "output")  # noqa: B009 - every stage's settings have one
        check_writable(output)
        say(f"{name}: writing {output}")
        result = stage.perform(settings, inputs, self._connected(), run)
        self.seconds[name] = time.monotonic() - started
        return result

    def _connected(self) -> Cluster:
        if self._cluster is None:
            self._cluster = self._exits.enter_context(connect(self._job.cluster))
            if self._cluster.address is not None:  # a Ray of the job's own has no other node
                self._exits.enter_context(sampled_nodes(self._run.log_load))
        return self._cluster


@contextlib.contextmanager
def stages_of(
    job: JobSettings, kind: str, output: str, done: Mapping[str, tuple[Any, Any]] | None = None
) -> Iterator[tuple[Stages, Run]]:
    """Open the job's run and yield what runs its stages, and the run; leave the cluster, if any, at the end.

    Args:
        job: The job's settings.
        kind: The job's name.
        output: Its output folder.
        done: What :func:`done_already` found.
    """
    folder = local_folder(output)
    check_writable(str(folder))
    options = TrackingOptions(**job.tracking.model_dump())
    with (
        open_run(options, name=folder.name, kind=kind, output=folder, key=_run_key(output)) as run,
        contextlib.ExitStack() as exits,
    ):
        run.log_settings(_plain(job))
        yield Stages(job, run, exits, done or {}), run


def done_already(job: Any, stages: Mapping[str, Stage[Any, Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Return inputs and results of the first stages, up to the first one that has work to do.

    Called before a run is opened: a mistake found here leaves an earlier run's status as it is.
    """
    done: dict[str, tuple[Any, Any]] = {}
    for name, stage in stages.items():
        inputs, result = _looked_up(name, stage, getattr(job, name))
        if result is None:
            break
        done[name] = inputs, result
    return done


def run_alone(kind: str, stage: Stage[Any, Any, R_co], job: Any) -> R_co:
    """Run a job that is one stage; mistakes are found, and finished work is skipped, before a run is opened."""
    inputs, done = _looked_up(kind, stage, job)
    if done is not None:
        _finish_records(kind, stage, job, inputs, done)
        return done
    if isinstance(job, PretrainJob | FinetuneJob):
        require_own_cpus(job.cluster, job.train.fewest_cpus, "train.num_workers x train.threads_per_worker")
    with stages_of(job, kind, job.output) as (stages, run):
        return stages.perform(kind, stage, job, inputs, run)


def _finish_records(kind: str, stage: Stage[S_contra, I, R_co], job: Any, inputs: I, done: Any) -> None:
    """Record a result whose run did not end FINISHED, and send what no store has taken; costs nothing else.

    The work is done: another process at the folder is told and no error.
    """
    folder = local_folder(job.output)
    if not unfinished_runs(folder / "tracking"):
        send_rest(TrackingOptions(**job.tracking.model_dump()), folder)
        return
    try:
        with stages_of(job, kind, job.output) as (_, run):
            stage.record(run, job, inputs, done)
    except ResourceError as error:
        say(f"tracking: {error}")


def _looked_up(name: str, stage: Stage[S_contra, I, R_co], settings: S_contra) -> tuple[I, R_co | None]:
    """Return a stage's inputs, and its result if it is there already."""
    inputs = stage.resolve(settings)
    done = stage.finished(settings, inputs)
    if done is not None:
        output = getattr(settings, "output")  # noqa: B009
        say(f"{name}: skipped, {output} was made with these settings already")
    return inputs, done


def made_already(
    output: str, name: str, decisive: dict[str, Any], told: str, checkpoint: Location
) -> dict[str, Any] | None:
    """Return the sealed JSON object that a finished stage wrote under OUTPUT, None if there is none.

    Args:
        output: The stage's output folder.
        name: The file.
        decisive: The settings that decide the result; the file has those it was made with as "settings".
        told: What the file holds, such as "a result for", before the other value of a setting.
        checkpoint: Where the checkpoint lies whose digest is among the settings; digests are told as such places.

    Raises:
        StaleOutputError: It was made with others; names the first that differs.
    """
    found = sealed_json.read(Storage.of(output).join(name))
    if found is not None and (difference := first_difference(found["settings"], decisive)):
        setting, old, new = difference
        if setting == "checkpoint":
            from gpt_core.training.checkpoint import path_of_digest

            old, new = path_of_digest(old, checkpoint), str(checkpoint)
        remedy = "choose another output folder, or delete it"
        raise StaleOutputError(f"{output}: {setting}", f"{told} {old!r}", f"{new!r}", remedy)
    return found


def write_rejects(output: str, rejects: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows a stage has set aside, if there are any, as lines of JSON beside what it made."""
    storage = Storage.of(output)
    lines = b"".join(json.dumps(reject, ensure_ascii=False).encode() + b"\n" for reject in rejects)
    if lines:
        storage.write_atomically(storage.join(REJECTS), lambda file: file.write(lines))


def log_output(run: Run, output: str, name: str) -> None:
    """Record a file of a stage's output; of one in a store a copy is recorded."""
    if not is_url(output):
        run.log_artifact(Path(output) / name)
        return
    storage = Storage.of(output)
    with storage.open_read(storage.join(name)) as file:
        run.log_file(name, file.read())


def check_writable(output: str) -> None:
    """Make a local output folder and raise ResourceError where nothing can be written into it."""
    if is_url(output):
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


def check_new(output: str, kind: Literal["file", "folder"]) -> None:
    """Make the folder around a new output and raise ResourceError where the output cannot be put there."""
    if "://" in output:
        return
    check_writable(str(Path(output).parent))
    found = "folder" if Path(output).is_dir() else "file"
    if Path(output).exists() and found != kind:
        raise ResourceError(output, f"a {found}", f"room for a {kind} of this name", "choose another name")


def _run_key(output: str) -> str | None:
    """Return what names the job's run for whoever works at a URL; None where the records lie in the output itself.

    The key lies in the output: whoever deletes that to begin anew begins a new run as well.

    Raises:
        ResourceError: If the store does not take it.
    """
    if not is_url(output):
        return None
    storage = Storage.of(output)
    url = storage.join(_RUN_KEY)
    try:
        if not storage.exists(url):
            key = secrets.token_hex(16)
            storage.write_atomically(url, lambda file: file.write(key.encode()))
            return key
        with storage.open_read(url) as file:
            return file.read().decode()
    except OSError as error:
        raise ResourceError(url, str(error), "a store that takes it", "mend that and run it again") from error


def _plain(settings: Any) -> dict[str, Any]:
    return settings.model_dump(mode="json")
