"""How many replicas there are: a fixed number, or as many as the engines' own queues need.

Ray Serve's default policy counts calls, but a call may hold many completions; the engines know.
"""

import math
from typing import Any

from gpt_core.settings import EngineSettings

SAMPLES = "samples"
"""Name under which each replica reports its samples, in slots or waiting for one."""
_SECONDS_BETWEEN_REPORTS = 1.0
_LOOK_BACK_SECONDS = 5.0
_UPSCALE_DELAY_SECONDS = 5.0
_DOWNSCALE_DELAY_SECONDS = 60.0


class SlotScaling:
    """An autoscaling policy of Ray Serve: a slot for every sample there is.

    Args:
        num_slots: Slots of a replica.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas wanted, before Ray Serve's bounds and delays, and the kept state."""
        samples = sum((context.aggregated_metrics or {}).get(SAMPLES, {}).values())
        return max(1, math.ceil(samples / self._num_slots)), context.policy_state


def replica_options(settings: EngineSettings) -> dict[str, Any]:
    """Return the options of a deployment that fix or scale its replicas."""
    if settings.max_replicas is None:
        return {"num_replicas": settings.num_replicas}
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    policy = AutoscalingPolicy(policy_function=SlotScaling, policy_kwargs={"num_slots": settings.num_slots})
    scaling = AutoscalingConfig(
        min_replicas=settings.num_replicas,
        max_replicas=settings.max_replicas,
        metrics_interval_s=_SECONDS_BETWEEN_REPORTS,
        look_back_period_s=_LOOK_BACK_SECONDS,
        upscale_delay_s=_UPSCALE_DELAY_SECONDS,
        downscale_delay_s=_DOWNSCALE_DELAY_SECONDS,
        policy=policy,
    )
    return {"autoscaling_config": scaling}
