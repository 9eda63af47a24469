"""What the settings of all jobs are made of: strict types, and the sections that every job on a cluster shares."""

import os
from collections.abc import Callable
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gpt_core.credentials import without_credentials
from gpt_core.errors import SettingsError


def absolute(place: str) -> str:
    """Return a local path as an absolute one, since a Ray worker's current folder is another; URLs stay."""
    if not place or "://" in place or place.startswith(("$", "models:/")):
        return place
    return os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111 - Path would eat the end of a glob


def _local(place: str) -> str:
    if "://" in place:
        raise ValueError(f"found the URL {without_credentials(place)}; expected a place on a disk; name one")
    return place


Count = Annotated[int, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[str, Field(min_length=1), AfterValidator(absolute)]
LocalPlace = Annotated[Place, AfterValidator(_local)]
Places = Annotated[tuple[Place, ...], Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
# A flag of a setting that may be a list hands over a list, also of one number.
CountOrRange = Annotated[
    Count | Annotated[tuple[Count, Count], Field(strict=False)],
    BeforeValidator(lambda value: value[0] if isinstance(value, list | tuple) and len(value) == 1 else value),
]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(@[A-Za-z][\w-]*)?$")]


class _NoSuchName:
    """A class attribute that is not there."""

    def __get__(self, owner: object, kind: object = None) -> None:
        raise AttributeError


class _SettingsType(type(BaseModel)):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    # Python's abstract classes have a method of this name; hidden, so that a setting may be called so.
    register = _NoSuchName()  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


class Settings(BaseModel, metaclass=_SettingsType):
    """Base of all settings: frozen, strict, no unknown names, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def fitting(check: Callable[[], object]) -> None:
    """Run a check of the core as part of a validator: the mistake it finds joins the others that pydantic collects."""
    try:
        check()
    except SettingsError as error:
        raise ValueError(error) from error


class ClusterSettings(Settings):
    """Where the job runs."""

    address: str | None = None
    """Ray cluster to use: "auto", HOST:PORT or ray://HOST:PORT (herd submit: http://HEAD:8265); null starts a Ray of
    its own, or takes RAY_ADDRESS."""
    num_cpus: Count | None = None
    """CPUs the job's own Ray may use; null means all that this process may, within the quota of its container. Not
    allowed together with an address."""
    min_cpus: Count | None = None
    """Free CPUs to wait for on a cluster, so that its autoscaler adds nodes; null takes those that are there."""
    min_gpus: Count | None = None
    """Free GPUs to wait for likewise."""
    object_store_bytes: Annotated[int, Field(ge=78_643_200)] | None = None
    """Shared memory of the job's own Ray in bytes, at least 75 MiB; null takes 256 MiB. No text and no token goes
    through it. Not allowed together with an address."""


def _without_password(uri: str) -> str:
    if without_credentials(uri) != uri:
        raise ValueError(
            f"found a user name or a password in front of {without_credentials(uri).partition('://')[2]}; expected an "
            "address without; for a server set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, for a database "
            "put the whole address into MLFLOW_TRACKING_URI instead"
        )
    return uri


class TrackingSettings(Settings):
    """Where MLflow records go."""

    enabled: bool = True
    """Send records to MLflow; false keeps them in the output folder's journal, until a rerun with true sends them."""
    uri: Annotated[str, AfterValidator(_without_password)] | None = None
    """MLflow tracking address, without a password; null takes MLFLOW_TRACKING_URI, else a SQLite file beside the
    output folder."""
    experiment: str = "gpt-herd"
    """MLflow experiment the runs belong to."""


class JobSettings(Settings):
    """What every job that runs on a cluster shares."""

    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()


class PoolSettings(Settings):
    """The actors that work on the planned shards."""

    min_actors: Count = 1
    """Actors that are always there."""
    max_actors: Count | None = None
    """Actors at most; null means one for each CPU of the cluster, for `herd generate` two for each replica."""
    cpus_per_actor: Positive = 0.5
    """CPUs Ray reserves for an actor; below 1, so that actors never starve Ray Data's own tasks."""
    max_tries: Count = 3
    """Times a shard is tried before it is reported as failed; the other shards go on."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(
                f"max_actors {self.max_actors} is below min_actors {self.min_actors}; raise it or leave it out"
            )
        return self
