"""Waits until an autoscaling cluster has the nodes a job wants.

Ray adds nodes for demand it sees; jobs here size themselves by the nodes that are there. So the
demand is shown first, as a placement group, which Ray takes back by itself should this process die.
"""

import time

from cluster.progress import say
from gpt_core.errors import ResourceError
from gpt_core.settings import ClusterSettings

_WAIT_SECONDS = 1800.0
_ASK_SECONDS = 1  # no signal is handled meanwhile
_FIRST_SAY_SECONDS = 2.0
_SAY_SECONDS = 30.0


def wait_for_nodes(settings: ClusterSettings) -> None:
    """Return once the CPUs and GPUs the settings want are there and free.

    Raises:
        ResourceError: If they are not within half an hour.
    """
    bundles = [{"GPU": 1.0}] * (settings.min_gpus or 0) + [{"CPU": 1.0}] * (settings.min_cpus or 0)
    if not bundles:
        return
    from ray.util.placement_group import placement_group, remove_placement_group

    wanted = f"{settings.min_cpus or 0} CPUs and {settings.min_gpus or 0} GPUs"
    group = placement_group(bundles, strategy="PACK")
    try:
        started, next_say = time.monotonic(), _FIRST_SAY_SECONDS
        while not group.wait(timeout_seconds=_ASK_SECONDS):
            waited = time.monotonic() - started
            if waited >= _WAIT_SECONDS:
                raise ResourceError(
                    "cluster.min_cpus, cluster.min_gpus",
                    f"less than {wanted} free after {_WAIT_SECONDS:g} s",
                    "a cluster that grows to them",
                    "lower them, raise the cluster's max_workers, or look at `ray status` on its head",
                )
            if waited >= next_say:
                say(f"waiting for {wanted} ({waited:.0f} s)")
                next_say += _SAY_SECONDS
    finally:
        remove_placement_group(group)
