"""CPUs and GPUs a job's settings ask for, found before the job is sent to a cluster.

Ray lets an unsatisfiable job wait for ever; here it is refused, with the setting to change.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.submission.head import Nodes
from gpt_core.errors import ResourceError
from gpt_core.settings import EngineSettings, PoolSettings, Settings, TrainSettings


@dataclass(frozen=True, slots=True)
class Need:
    """What one stage holds at the same time.

    Attributes:
        setting: The settings it follows from.
        cpus: CPUs over all nodes.
        gpus: GPUs over all nodes, where the settings insist on GPUs.
        cpus_of_one: CPUs of the largest single worker, which one node must have.
    """

    setting: str
    cpus: float
    gpus: float
    cpus_of_one: float

    def __add__(self, other: "Need") -> "Need":
        return Need(
            f"{self.setting} + {other.setting}",
            self.cpus + other.cpus,
            self.gpus + other.gpus,
            max(self.cpus_of_one, other.cpus_of_one),
        )


def needs_of(settings: Settings, path: str = "") -> Iterator[Need]:
    """Yield the need of each stage; stages run one after another, the parts of a stage together."""
    stage: Need | None = None
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        inner = f"{path}.{name}".lstrip(".")
        if need := _need(value, inner):
            stage = stage + need if stage else need
        elif isinstance(value, Settings):
            yield from needs_of(value, inner)
    if stage:
        yield stage


def _need(value: object, path: str) -> Need | None:
    match value:
        case PoolSettings():
            cpus = value.min_actors * value.cpus_per_actor
            return Need(f"{path}.min_actors x {path}.cpus_per_actor", cpus, 0, value.cpus_per_actor)
        case TrainSettings():
            gpus = value.fewest_workers if value.device == "gpu" else 0
            cpus = value.fewest_workers * value.threads_per_worker
            return Need(f"{path}.num_workers x {path}.threads_per_worker", cpus, gpus, value.threads_per_worker)
        case EngineSettings():
            gpus = value.num_replicas if value.device == "gpu" else 0
            cpus = value.num_replicas * value.threads_per_replica
            return Need(f"{path}.num_replicas x {path}.threads_per_replica", cpus, gpus, value.threads_per_replica)
    return None


def unmet(need: Need, nodes: Nodes) -> ResourceError | None:
    """Return the error a need meets on these nodes, None where they have enough."""
    for found, has, unit in (
        (need.gpus, sum(nodes.gpus), "GPUs"),
        (need.cpus, sum(nodes.cpus), "CPUs"),
        (need.cpus_of_one, max(nodes.cpus, default=0.0), "CPUs on one node"),
    ):
        if found > has:
            return ResourceError(
                need.setting,
                f"a need of {found:g} {unit}",
                f"at most the {has:g} the cluster has",
                "lower it, or add nodes to the cluster",
            )
    return None
