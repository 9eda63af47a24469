"""Ray Train at work until the plan's last step: workers lost, nodes that come and go, wishes to stop.

One start of Ray Train trains on a fixed number of workers and starts lost ones again (``cluster.restart_in_place``);
the loop here starts it anew, on as many as then fit, when nodes have gone or joined. Ray Train's own elastic resizing
is not used: it takes numbers of workers that exact sums cannot (3, 5, ...), and resizes by killing, which loses the
steps since the last checkpoint.
"""

import math
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.capacity import PROBE_SECONDS, Worker, draining_nodes, living_nodes, num_fitting
from cluster.cpu_allocator import GLIBC_TUNABLES
from cluster.interrupts import Stopped, held
from cluster.progress import say
from cluster.recording.journal import Tail
from cluster.session import is_mistake_in_code, own_error_in, quiet_libraries
from cluster.train_controller import kill_train_controller
from cluster.worker_losses import LOSSES, Losses, newest_step
from gpt_core.counted import counted
from gpt_core.errors import ResourceError
from gpt_core.training import checkpoint
from gpt_core.training.training_plan import TrainingPlan

STOP = ".stop"
_RAY_FOLDER = ".ray"
_POLL_SECONDS = 0.5
_STOP_SECONDS = 60.0
_KILL_SECONDS = 10.0
_RESIZE_POLL_SECONDS = 3.0
# What a dead group held is free again after a moment; a node may be on its way.
_SETTLE_SECONDS = 5.0
_NODE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Fitting:
    """One training run on Ray Train.

    Attributes:
        title: Word for progress lines, such as "pretrain".
        plan: What to train.
        work: Called by Ray Train in each worker with {"plan": ...}.
        counts: Numbers of workers it may run on, rising.
        max_failures: Losses of workers survived in a row without a new checkpoint between them.
        show: Called every half second, to show progress; returns whether there was any.
        max_seconds: How long to train at most; None = until the plan is over.
    """

    title: str
    plan: TrainingPlan
    work: Callable[[dict[str, Any]], None]
    counts: list[int]
    max_failures: int
    show: Callable[[], bool]
    max_seconds: float | None = None

    @property
    def worker(self) -> Worker:
        """What each worker takes of a node."""
        return Worker(self.plan.num_threads, int(self.plan.device == "gpu"))

    @property
    def folder(self) -> Path:
        """The run's local folder."""
        return self.plan.folder

    def run(self) -> None:
        """Train until the plan is over.

        Raises:
            Stopped: max_seconds ended before the plan did; there is a checkpoint to go on from.
            HerdError: The workers' own, at once; ResourceError where no number of workers fits for
                ten minutes.
            Exception: Ray's, once more than max_failures workers were lost without progress.
        """
        shutil.rmtree(self.folder / _RAY_FOLDER, ignore_errors=True)  # of a driver that was killed
        losses = Losses(self.folder, self.plan.output, self.max_failures, newest_step(self.plan.output))
        group: _Group | None = None
        deadline = time.monotonic() + (math.inf if self.max_seconds is None else self.max_seconds)
        while True:
            count = self._count_now(group.hoped if group else 0)
            if group and count != group.count:
                say(f"{self.title}: going on with {counted(count, 'worker')} instead of {group.count}")
            group = _Group(self, count, losses, deadline)
            error = group.wait()
            if error is not None:
                self._report(error, losses)
            elif _is_over(self.plan):
                return
            elif time.monotonic() >= deadline:
                raise Stopped(
                    f"{self.title}: stopped at step {newest_step(self.plan.output):,} of {self.plan.num_steps:,} "
                    f"after {self.max_seconds:g} s (train.max_seconds); the same command goes on"
                )

    def _report(self, error: BaseException, losses: Losses) -> None:
        """Say what was lost, or raise where starting again would not help."""
        own = own_error_in(error)
        if own is not None:
            raise own from error
        if not losses.add() or is_mistake_in_code(error):
            raise error
        say(f"{self.title}: {losses.told(error)}")

    def _count_now(self, hoped: int) -> int:
        """Return the largest allowed number of workers that fits now; waits where none does.

        Args:
            hoped: Workers that fitted until just now, 0 at the start; what they held is free again only
                after a moment.
        """
        if len(self.counts) == 1:  # Ray waits for the nodes, and an autoscaler sees what it waits for
            return self.counts[0]
        begun, said, probe_seconds = time.monotonic(), False, PROBE_SECONDS
        while True:
            fits = num_fitting(self.worker, probe_seconds if hoped else None)
            probe_seconds *= 2  # nodes too busy to answer are no dead ones
            count = max((count for count in self.counts if count <= fits), default=0)
            waited = time.monotonic() - begun
            if count and (count >= hoped or waited > _SETTLE_SECONDS):
                return count
            if waited > _NODE_SECONDS:
                raise ResourceError(
                    "train.num_workers",
                    f"room for {fits} workers",
                    f"room for {self.counts[0]}",
                    "add nodes and run it again; it goes on from its newest checkpoint",
                )
            if waited > _SETTLE_SECONDS and not said:
                say(f"{self.title}: waiting for room for {self.counts[0]} workers; there is room for {fits}")
                said = True
            time.sleep(_POLL_SECONDS)


class _Group:
    """One start of Ray Train, in a thread of its own: it would take over Ctrl-C in the main one."""

    def __init__(self, fitting: Fitting, count: int, losses: Losses, deadline: float = math.inf) -> None:
        self.count = count
        """Workers of this start."""
        self.hoped = count
        """Workers of the next one, as far as was seen."""
        self._fitting = fitting
        self._deadline = deadline
        self._stop = fitting.folder / STOP
        self._losses = losses
        (fitting.folder / LOSSES).unlink(missing_ok=True)
        self._restarts = Tail(fitting.folder / LOSSES)
        self._trainer = _trainer(fitting, count, losses)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        # Waited for instead of joining the thread: Python takes a thread for ended whose join was interrupted.
        self._ended = threading.Event()
        self._has_stepped = False
        self._next_look_seconds = time.monotonic() + _RESIZE_POLL_SECONDS
        self._leaving = draining_nodes()

    def wait(self) -> BaseException | None:
        """Wait until the workers end and return their error, if any; Ctrl-C asks for a last checkpoint first."""
        try:
            with held():
                self._stop.unlink(missing_ok=True)
                self._thread.start()
            while not self._ended.wait(_POLL_SECONDS):
                self._has_stepped |= self._fitting.show()
                self._tell_restarts()
                self._resize_if_better()
                self._end_in_time()
        except KeyboardInterrupt:
            self._wait_for_checkpoint()
            raise
        finally:
            self._end()
        self._fitting.show()
        self._tell_restarts()
        (self._fitting.folder / LOSSES).unlink(missing_ok=True)
        return self._error

    def _wait_for_checkpoint(self) -> None:
        """Wait for a checkpoint of the step under way; a second signal, or a step that takes too long, ends that."""
        title = self._fitting.title
        if not (self._has_stepped or self._fitting.show()):
            return  # there is nothing to save
        try:
            self._stop.touch()
        except OSError as error:
            say(f"{title}: stopping without a last checkpoint: {error}")
            return
        say(f"{title}: stopping after this step; a checkpoint is being written")
        if not self._ended.wait(_STOP_SECONDS):
            say(f"{title}: no checkpoint after {_STOP_SECONDS:g} s; stopping without it, a rerun repeats steps")

    def _end(self) -> None:
        """End what is left: Ray must not be shut down under a thread that waits for it, which ends without a word."""
        give_up = time.monotonic() + _KILL_SECONDS
        has_started = self._thread.ident is not None
        while has_started and not self._ended.is_set() and time.monotonic() < give_up:
            kill_train_controller()  # again: it may not have been there yet
            self._ended.wait(_POLL_SECONDS)

    def _tell_restarts(self) -> None:
        for note in self._restarts.read():
            say(f"{self._fitting.title}: {note['told']}")
            self._losses.step, self._losses.failures = note["step"], note["failures"]

    def _resize_if_better(self) -> None:
        """Ask the workers to checkpoint and end where a node is leaving, or more of them would fit."""
        if time.monotonic() < self._next_look_seconds or self._stop.exists() or self._ended.is_set():
            return
        self._next_look_seconds = time.monotonic() + _RESIZE_POLL_SECONDS
        if draining_nodes() - self._leaving:  # Ray places nothing on those it knew before
            say(f"{self._fitting.title}: a node is leaving; writing a checkpoint and starting again on the others")
            self._stop.touch()
        elif self._more_fit():
            self._stop.touch()

    def _end_in_time(self) -> None:
        """Ask the workers to checkpoint and end where time is up."""
        if time.monotonic() >= self._deadline and not self._stop.exists():
            say(f"{self._fitting.title}: {self._fitting.max_seconds:g} s are over; a checkpoint is being written")
            self._stop.touch()

    def _more_fit(self) -> bool:
        # Before its first step a group may not have taken its CPUs yet, which then look free for more.
        if self._has_stepped and self.count < self._fitting.counts[-1]:
            fits = self.count + num_fitting(self._fitting.worker, probe_seconds=None)
            self.hoped = max(count for count in self._fitting.counts if count <= fits)
        return self.hoped > self.count

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # handed to the main thread
            self._error = error
        finally:
            shutil.rmtree(Path(self._trainer.run_config.storage_path), ignore_errors=True)
            self._ended.set()


def _trainer(fitting: Fitting, count: int, losses: Losses) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from cluster.own_trainer import OwnTrainer
    from cluster.restart_in_place import RestartInPlace
    from cluster.torch_group import NodeTorchConfig

    quiet_libraries()
    plan, worker = fitting.plan, fitting.worker
    threads = str(plan.num_threads)
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    is_elastic = len(fitting.counts) > 1
    if plan.device == "cpu":
        variables["GLIBC_TUNABLES"] = GLIBC_TUNABLES
    return OwnTrainer(
        fitting.work,
        train_loop_config={"plan": plan.to_dict()},
        torch_config=NodeTorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=count,
            use_gpu=worker.gpus > 0,
            resources_per_worker=worker.resources,
        ),
        run_config=RunConfig(
            # A name of its own: Ray would resume one that it knows from its own record, and we do from ours.
            name=uuid.uuid4().hex,
            storage_path=str(fitting.folder / _RAY_FOLDER),
            # RestartInPlace counts. An elastic run that waits a minute for a node goes on without it.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0 if is_elastic else -1),
            callbacks=[RestartInPlace(losses, living_nodes() if is_elastic else None)],
            worker_runtime_env={"env_vars": variables},
        ),
    )


def _is_over(plan: TrainingPlan) -> bool:
    paths = checkpoint.list_paths(plan.output)
    if not paths:
        return False
    newest = checkpoint.read_description(paths[-1])
    return plan.is_over(newest.step, newest.metrics)
