"""Ray Train's trainer, without the helper of its own that a Ray without a dashboard makes it wait for."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class OwnTrainer(TorchTrainer):
    """Starts no actor that frees a lost controller's CPUs, where that could not tell that one is lost.

    It asks the dashboard's server, which a job's own Ray does not have; there it would see nothing, and at the
    end be waited for until its question times out after ten seconds. That Ray ends with the job in any case.
    """

    def _create_default_callbacks(self) -> list[Any]:
        from ray._private.worker import global_worker

        callbacks = super()._create_default_callbacks()
        if global_worker.node is not None and global_worker.node.webui_url is not None:
            return callbacks
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
